//! The page of an analysis as bytes: complete, safe, small, the same every time.

use std::collections::BTreeSet;

use base64::Engine as _;
use sha2::{Digest, Sha256};
use tcq4::analysis::record::{Analysis, Section, Unmeasured};
use tcq4::report::{Csv, Exporter, Html, Pictures, analysis::page, html::html};

use crate::support::analysis::{HOSTILE, Shape, analysis};

const SMALL: Shape = Shape { layers: 3, experts: 0, detailed: 1 };

fn text(record: &Analysis) -> String {
    String::from_utf8(html(&page(record)).unwrap()).unwrap()
}

/// The part of a text between two marks.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("no {from}"));
    rest.split_once(to).unwrap_or_else(|| panic!("no {to}")).0
}

#[test]
fn pages_are_small_at_any_size() {
    for (layers, experts, detailed) in [(2, 0, 2), (30, 0, 4), (48, 128, 4), (300, 0, 40)] {
        let bytes = html(&page(&analysis(Shape { layers, experts, detailed }))).unwrap().len();
        assert!(bytes < 3_000_000, "{layers} layers, {experts} experts: {bytes} bytes");
    }
}

#[test]
fn what_does_not_fit_is_counted() {
    let many = text(&analysis(Shape { layers: 300, experts: 0, detailed: 40 }));
    let shown = many.matches("<article class=\"panel\"").count();
    let left_out: usize = between(&many, "<p class=\"gap\">", " more panels").parse().unwrap();
    assert_eq!(shown + left_out, 40 * 5);
    assert!(shown >= 3, "{shown} panels");
    // 7 tensors in each of 300 layers, less the substituted attn_k of every ninth layer, which is not measured.
    assert!(many.contains("of 2067 rows; tensors.csv has them all"));
}

#[test]
fn bytes_are_the_same_every_time() {
    let once = || (Html.export(&page(&analysis(SMALL))).unwrap(), Csv.export(&page(&analysis(SMALL))).unwrap());
    assert_eq!(once(), once());
    let pictures = |threads| {
        let pool = rayon_pool(threads);
        pool.install(|| Pictures.export(&page(&analysis(SMALL))).unwrap())
    };
    assert_eq!(pictures(1), pictures(2));
}

fn rayon_pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

#[test]
fn the_policy_allows_this_style_and_this_script_only() {
    let page = text(&analysis(SMALL));
    let hash = |text: &str| base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text.as_bytes()));
    let style = hash(between(&page, "<style>", "</style>"));
    let script = hash(between(&page, "<script>", "</script>"));
    let policy = between(&page, "Content-Security-Policy\" content=\"", "\">").replace("&#39;", "'");
    let expected = format!(
        "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
    );
    assert_eq!(policy, expected);
    assert!(!page.contains(" style=\"") && !page.contains(" onclick="), "the policy blocks inline styles and handlers");
    for outside in ["src=\"http", "href=\"http", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn names_from_models_are_escaped() {
    let mut record = analysis(SMALL);
    record.model.name = HOSTILE.into();
    record.tensors[0].name = HOSTILE.into();
    record.groups[0].tensors[0] = HOSTILE.into();
    record.tensor_details[0].name = HOSTILE.into();
    record.gate_details[0].tensor = HOSTILE.into();
    record.notices = vec![format!("{HOSTILE} is odd")];
    let page = text(&record);
    assert!(!page.contains("<script>alert") && !page.contains("<img"));
    assert!(page.contains("&#60;script&#62;alert"));
    for file in Pictures.export(&tcq4::report::analysis::page(&record)).unwrap() {
        let stem = file.name.trim_start_matches("details/");
        assert!(stem.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)), "{stem}");
    }
}

#[test]
fn names_of_files_differ() {
    let page = page(&analysis(Shape { layers: 4, experts: 8, detailed: 4 }));
    let mut names: Vec<String> =
        [Csv.export(&page).unwrap(), Pictures.export(&page).unwrap(), Html.export(&page).unwrap()]
            .concat()
            .into_iter()
            .map(|file| file.name)
            .collect();
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all);
    for name in
        ["report.html", "tensors.csv", "rounding_stats.csv", "channel_statistics.csv", "gates.csv", "experts.csv"]
    {
        assert!(names.iter().any(|known| known == name), "{name}");
    }
}

#[test]
fn files_hold_the_fields_of_the_known_tools() {
    let files = Csv.export(&page(&analysis(SMALL))).unwrap();
    let header = |name: &str| {
        let file = files.iter().find(|file| file.name == name).unwrap();
        let text = std::str::from_utf8(&file.bytes).unwrap();
        text.lines().next().unwrap().split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    let rounding = "layer_name total_weights rounded_up rounded_down exact rounded_up_pct rounded_down_pct exact_pct \
        rounding_mag_mean rounding_mag_std rounding_mag_max rounding_mag_p90 rounding_mag_p99";
    let channels = "channel mean std min max p05 p25 p50 p75 p95 negative_ratio dead_ratio weight_magnitude \
        awq_importance praq_importance abs_mean range awq_importance_normalized praq_importance_normalized awq_rank praq_rank";
    for (name, fields) in [("rounding_stats.csv", rounding), ("channel_statistics.csv", channels)] {
        let header = header(name);
        for field in fields.split_whitespace() {
            assert!(header.iter().any(|known| known == field), "{name}: {field}");
        }
    }
}

#[test]
fn sections_without_numbers_say_why_or_are_left_out() {
    let mut record = analysis(SMALL);
    for group in &mut record.groups {
        group.steps.clear();
    }
    for detail in &mut record.group_details {
        detail.block_maxima.clear();
    }
    record.gates.clear();
    record.gate_details.clear();
    record.unmeasured = vec![Unmeasured {
        section: Section::Steps,
        reason: "the statistics hold no sample rows".into(),
        subjects: Vec::new(),
        count: 0,
    }];
    let page = text(&record);
    let steps = between(&page, "<section id=\"steps\"", "</section>");
    assert!(steps.contains("</strong> The statistics hold no sample rows.</p>") && !steps.contains("<figure"));
    assert!(!page.contains("<section id=\"gates\"") && !page.contains("<section id=\"experts\""));
    assert!(!page.contains("href=\"#gates\""), "no link leads nowhere");
}

#[test]
fn an_empty_analysis_is_a_page_too() {
    let page = text(&Analysis::default());
    let content = between(&page, "<body>", "<script>");
    assert!(content.contains("<h2 id=\"findings-title\">"));
    for empty in ["<figure", "<table", "<section id=\"types\"", "NaN"] {
        assert!(!content.contains(empty), "{empty}");
    }
}

#[test]
fn links_lead_somewhere() {
    // Of the second page, most panels are left out, and with them the links to them.
    for (layers, experts, detailed) in [(5, 4, 2), (300, 0, 40)] {
        let page = text(&analysis(Shape { layers, experts, detailed }));
        let targets: BTreeSet<&str> =
            page.split("href=\"#").skip(1).map(|rest| rest.split_once('"').unwrap().0).collect();
        assert!(targets.iter().any(|target| target.starts_with("detail-")));
        for target in targets {
            assert!(page.contains(&format!("id=\"{target}\"")), "#{target}");
        }
    }
}

#[cfg(feature = "png")]
#[test]
fn labels_are_in_the_png_without_fonts_on_the_machine() {
    let page = page(&analysis(SMALL));
    let (figure, _) = page.figures().into_iter().find(|(figure, _)| figure.name == "bytes_by_type").unwrap();
    let with = tcq4::report::png::png("p", &figure.draw(true).unwrap().svg).unwrap();
    let texts = regex::Regex::new("(?s)<text.*?</text>").unwrap();
    let blank = texts.replace_all(&figure.draw(true).unwrap().svg, "").into_owned();
    let without = tcq4::report::png::png("p", &blank).unwrap();
    assert!(with.starts_with(b"\x89PNG") && with.len() > without.len() + 1000, "{} and {}", with.len(), without.len());
}
