//! The page of an analysis in a real browser: what a reader clicks, sees and hears about.

use serde_json::json;
use tcq4::report::{analysis::page, html::html};

use crate::support::analysis::{HOSTILE, Shape, analysis};
use crate::support::browser::Browser;
use crate::support::{Dir, skip};

/// A browser with the page of an analysis, if there is a browser.
fn opened(change: impl FnOnce(&mut tcq4::analysis::Analysis)) -> Option<(Browser, Dir)> {
    let mut browser = match Browser::start() {
        Ok(browser) => browser,
        Err(reason) => {
            skip(&reason);
            return None;
        }
    };
    let dir = Dir::new();
    let mut record = analysis(Shape { layers: 12, experts: 4, detailed: 2 });
    change(&mut record);
    let path = dir.write("report.html", &html(&page(&record)).unwrap());
    browser.resize(1400, 900);
    browser.prefer("light");
    browser.open(&path);
    Some((browser, dir))
}

const TABLE: &str = ".table[data-name=tensors]";

/// The texts or sort keys of a column of the visible rows.
fn column(browser: &mut Browser, heading: &str) -> Vec<String> {
    let script = format!(
        "(() => {{ const t = document.querySelector('{TABLE} table');
          const c = [...t.tHead.rows[0].cells].find(h => h.textContent === {heading:?}).cellIndex;
          return [...t.tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[c].dataset.v ?? r.cells[c].textContent) }})()"
    );
    serde_json::from_value(browser.eval(&script)).unwrap()
}

fn numbers(texts: &[String]) -> Vec<f64> {
    texts.iter().map(|text| text.parse().unwrap_or_else(|_| panic!("{text} is no number"))).collect()
}

/// The selector of a heading's button.
fn heading(browser: &mut Browser, title: &str) -> String {
    let script = format!(
        "[...document.querySelector('{TABLE} thead tr').cells].findIndex(h => h.textContent === {title:?}) + 1"
    );
    format!("{TABLE} th:nth-child({}) button", browser.eval(&script))
}

#[test]
fn tables_sort_by_number_both_ways_and_keep_equals_in_order() {
    let Some((mut browser, _dir)) = opened(|record| record.tensors[5].error_rel = None) else { return };
    let button = heading(&mut browser, "Weights' error");
    browser.click(&button);
    let state = format!("document.querySelector({button:?}).parentElement.getAttribute('aria-sort')");
    assert_eq!(browser.eval(&state), "ascending");
    let ascending = column(&mut browser, "Weights' error");
    let (last, measured) = ascending.split_last().unwrap();
    assert!(numbers(measured).is_sorted() && last.is_empty(), "absent values come last: {ascending:?}");
    browser.click(&button);
    assert_eq!(browser.eval(&state), "descending");
    let descending = column(&mut browser, "Weights' error");
    let (last, measured) = descending.split_last().unwrap();
    assert!(numbers(measured).iter().rev().is_sorted() && last.is_empty());
    assert_eq!(browser.eval(&format!("document.querySelectorAll('{TABLE} th[aria-sort]').length")), 1);
    // By layer on top of that: within a layer the errors stay descending.
    let by_layer = heading(&mut browser, "Layer");
    browser.click(&by_layer);
    let (layers, errors) = (column(&mut browser, "Layer"), column(&mut browser, "Weights' error"));
    assert_eq!(layers.first().map(String::as_str), Some("0"));
    assert!(numbers(&layers).is_sorted(), "2 comes before 10: {layers:?}");
    let pairs: Vec<(&String, &String)> = layers.iter().zip(&errors).filter(|(_, e)| !e.is_empty()).collect();
    for pair in pairs.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        assert!(pair[0].1.parse::<f64>().unwrap() >= pair[1].1.parse::<f64>().unwrap());
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_keyboard_sorts_too() {
    let Some((mut browser, _dir)) = opened(|_| ()) else { return };
    let button = heading(&mut browser, "Tensor");
    browser.eval(&format!("document.querySelector({button:?}).focus()"));
    let enter = json!({"type": "keyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"});
    browser.call("Input.dispatchKeyEvent", &enter);
    let names = column(&mut browser, "Tensor");
    assert_eq!(names.first().map(String::as_str), Some("blk.0.attn_k.weight"));
    assert!(names.iter().position(|n| n.starts_with("blk.2.")) < names.iter().position(|n| n.starts_with("blk.10.")));
}

#[test]
fn filters_by_text_kind_and_layer_agree_with_their_count() {
    let Some((mut browser, _dir)) = opened(|_| ()) else { return };
    let count = |browser: &mut Browser| browser.eval(&format!("document.querySelector('{TABLE} output').textContent"));
    let set = |browser: &mut Browser, place: usize, value: &str| {
        browser.eval(&format!(
            "(() => {{ const e = document.querySelectorAll('{TABLE} .tools :is(input, select)')[{place}];
              e.value = {value:?}; e.dispatchEvent(new Event('input', {{bubbles: true}})) }})()"
        ));
    };
    // 7 tensors in each of 12 layers, less the substituted attn_k of layer 4.
    assert_eq!(count(&mut browser), "83 of 83 rows");
    set(&mut browser, 0, "FFN_");
    assert_eq!(count(&mut browser), "36 of 83 rows");
    set(&mut browser, 1, "7");
    assert_eq!(column(&mut browser, "Layer"), ["7", "7", "7"]);
    set(&mut browser, 2, "ffn_up");
    assert_eq!(column(&mut browser, "Tensor"), ["blk.7.ffn_up.weight"]);
    assert_eq!(count(&mut browser), "1 of 83 rows");
    set(&mut browser, 0, "no such tensor");
    assert_eq!(count(&mut browser), "0 of 83 rows");
    for (place, value) in [(0, ""), (1, ""), (2, "")] {
        set(&mut browser, place, value);
    }
    assert_eq!(count(&mut browser), "83 of 83 rows");
}

#[test]
fn one_panel_is_shown_and_links_open_theirs() {
    let Some((mut browser, _dir)) = opened(|_| ()) else { return };
    let shown = "[...document.querySelectorAll('.panel')].filter(p => !p.hidden).map(p => p.id).join()";
    let choose = |browser: &mut Browser, label: &str, value: &str| {
        browser.eval(&format!(
            "(() => {{ const s = [...document.querySelectorAll('.picker label')].find(l => l.textContent.startsWith('{label}'))
              .querySelector('select'); s.value = {value:?}; s.dispatchEvent(new Event('change')) }})()"
        ));
    };
    choose(&mut browser, "Layer", "0");
    choose(&mut browser, "Input", "detail-blk.0.ffn_down");
    assert_eq!(browser.eval(shown), "detail-blk.0.ffn_down");
    choose(&mut browser, "Layer", "1");
    assert_eq!(browser.eval(shown), "detail-blk.1.ffn_down", "the name stays where the layer has it");
    // A panel of the first of two layers has one after it, whatever the order within a layer.
    browser.eval("location.hash = '#detail-blk.0.attn_qkv'");
    browser.eval("new Promise(done => setTimeout(done, 100))");
    assert_eq!(browser.eval(shown), "detail-blk.0.attn_qkv");
    browser.click(".picker .step:last-child");
    let next = browser.eval(shown);
    assert!(next != "detail-blk.0.attn_qkv" && next.as_str().is_some_and(|id| id.starts_with("detail-")), "{next}");
    browser.click(".picker .step:nth-last-child(2)");
    assert_eq!(browser.eval(shown), "detail-blk.0.attn_qkv", "there and back");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// Finds texts whose contrast with what lies behind them is below 4.5.
const LOW_CONTRAST: &str = r"(() => {
  const channels = (c) => { const m = c.match(/[\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = channels(getComputedStyle(e).backgroundColor); if (c[3] > 0.99) return c; }
    return [255, 255, 255, 1]; };
  const bad = []; let seen = 0;
  const check = (e, colour) => { const [a, b] = [light(channels(colour).slice(0, 3)), light(ground(e).slice(0, 3))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); seen++;
    if (ratio < 4.5) bad.push(`${e.tagName} ${e.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`); };
  for (const e of document.querySelectorAll('h1,h2,h3,h4,p,a,button,th,td,caption,figcaption,label,output,summary,dt,dd,.tag,.here,select,input'))
    if (e.offsetParent && e.textContent.trim()) check(e, getComputedStyle(e).color);
  for (const t of document.querySelectorAll('svg text[fill=\'#1F2328\']')) if (t.getBoundingClientRect().width) check(t.closest('.canvas'), getComputedStyle(t).fill);
  return { seen, bad: [...new Set(bad)] };
})()";

#[test]
fn light_and_dark_are_readable_and_the_choice_stays() {
    let Some((mut browser, _dir)) = opened(|_| ()) else { return };
    let ground = "getComputedStyle(document.body).backgroundColor";
    let readable = |browser: &mut Browser| {
        let found = browser.eval(LOW_CONTRAST);
        assert!(found["seen"].as_u64() > Some(500), "{found}");
        assert_eq!(found["bad"], json!([]));
    };
    assert_eq!(browser.eval(ground), "rgb(255, 255, 255)");
    readable(&mut browser);
    browser.prefer("dark");
    assert_eq!(browser.eval(ground), "rgb(15, 20, 24)");
    readable(&mut browser);
    let ink = browser.eval("getComputedStyle(document.querySelector('svg text[fill=\"#1F2328\"]')).fill");
    assert_eq!(ink, browser.eval("getComputedStyle(document.body).color"), "plots follow");
    browser.click("#theme");
    assert_eq!(browser.eval(ground), "rgb(255, 255, 255)");
    assert_eq!(browser.eval("document.querySelector('#theme').getAttribute('aria-pressed')"), "false");
    browser.reload();
    assert_eq!(browser.eval(ground), "rgb(255, 255, 255)", "the choice outlives the page");
    browser.click("#theme");
    assert_eq!(browser.eval(ground), "rgb(15, 20, 24)");
    readable(&mut browser);
}

#[test]
fn nothing_sticks_out_on_a_phone() {
    let Some((mut browser, _dir)) = opened(|record| record.tensors[0].name = "x".repeat(300)) else { return };
    for width in [360, 768, 1400] {
        browser.resize(width, 800);
        let script = "[document.documentElement.scrollWidth, innerWidth]";
        assert_eq!(browser.eval(script), json!([width, width]));
    }
    browser.resize(360, 800);
    let wide = browser.eval(
        "document.querySelector('.table .scroll').scrollWidth > document.querySelector('.table .scroll').clientWidth",
    );
    assert_eq!(wide, true, "tables scroll inside their box");
    let small = browser.eval(
        "Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height).filter(h => h > 0))",
    );
    assert!(small.as_f64() > Some(8.0), "the smallest text of a plot is {small} pixels high");
}

#[test]
fn headings_stay_in_sight_while_a_table_scrolls() {
    let Some((mut browser, _dir)) = opened(|_| ()) else { return };
    let moved = browser.eval(&format!(
        "(() => {{ const box = document.querySelector('{TABLE} .scroll'); const th = box.querySelector('th');
          box.scrollTop = 600; return [box.scrollTop, Math.round(th.getBoundingClientRect().top - box.getBoundingClientRect().top)] }})()"
    ));
    assert_eq!(moved[0], 600);
    assert!(moved[1].as_i64().is_some_and(|top| (0..=2).contains(&top)), "{moved}");
}

#[test]
fn plots_say_their_values_to_mouse_and_keyboard() {
    let Some((mut browser, _dir)) = opened(|_| ()) else { return };
    let tip = "document.querySelector('#tip').hidden ? null : document.querySelector('#tip').textContent";
    assert!(browser.eval(tip).is_null());
    browser.point_at("#output .wide .canvas svg");
    let text = browser.eval(tip);
    assert!(text.as_str().is_some_and(|text| text.starts_with("Layer ") && text.contains("Error: 0.0")), "{text}");
    browser.eval("document.querySelector('#output .canvas').focus()");
    browser.press("ArrowRight");
    let text = browser.eval(tip);
    assert!(text.as_str().is_some_and(|text| text.starts_with("Layer 0, attn_q\nError: 0.0")), "{text}");
    browser.press("Escape");
    assert!(browser.eval(tip).is_null());
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn hostile_names_are_text_and_nothing_leaves_the_page() {
    let hostile = |record: &mut tcq4::analysis::Analysis| {
        record.model.name = HOSTILE.into();
        record.tensors[0].name = HOSTILE.into();
        record.tensors[0].kind = HOSTILE.into();
        record.groups[0].kind = HOSTILE.into();
        record.groups[0].tensors[0] = HOSTILE.into();
        record.tensor_details[0].name = HOSTILE.into();
        record.notices = vec![format!("{HOSTILE}</script><script>alert(2)</script>")];
        for row in &mut record.similarity {
            row.kind = HOSTILE.into();
        }
    };
    let Some((mut browser, _dir)) = opened(hostile) else { return };
    assert_eq!(browser.eval("document.querySelectorAll('img, iframe, object, embed, link').length"), 0);
    let executable = "[...document.querySelectorAll('script')].filter(s => s.type !== 'application/json').length";
    assert_eq!(browser.eval(executable), 1);
    assert_eq!(browser.eval("document.title.includes('<script>alert')"), true);
    let button = heading(&mut browser, "Tensor");
    browser.click(&button);
    browser.point_at("#output .wide .canvas svg");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn the_policy_stops_what_would_slip_through() {
    let Some((mut browser, _dir)) = opened(|_| ()) else { return };
    browser.eval("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit = 1\">')");
    browser.eval(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hit = 2'; document.body.append(s) })()",
    );
    let refused = browser.complaints();
    assert!(browser.eval("window.hit").is_null());
    assert!(refused.iter().any(|complaint| complaint.contains("Content Security Policy")), "{refused:?}");
}
