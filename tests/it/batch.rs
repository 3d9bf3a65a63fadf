//! `tcq4 batch`: killed at every time, twice at once, with jobs that fail. Needs llama.cpp.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::support::Dir;
use crate::support::cmd::{Done, fixture, interrupt};
use crate::support::tiny_model::TinyModel;

/// Two jobs that share statistics, one of them gated.
fn two_jobs() -> String {
    jobs_of("\"fast\", \"best\"")
}

fn jobs_of(presets: &str) -> String {
    format!(
        "output = \"out/{{name}}-{{preset}}.gguf\"\npresets = [{presets}]\n{}[[model]]\npath = \"{}\"\n\
         [model.gates]\nmax-kld = 0.5\ntexts = [\"{}\"]\nchunks = 1\nctx = 32\n",
        calibration(),
        fixture("models/tiny-llama-f16.gguf").display(),
        fixture("text/evaluation.txt").display(),
    )
}

fn calibration() -> String {
    let text = fixture("text/calibration.txt");
    format!("[calibration]\nsources = [\"{}\"]\nsamples = 2\nctx = 64\n", text.display())
}

/// A batch of `presets` that need no text, over one tiny model.
fn without_text(presets: usize) -> String {
    let names: Vec<String> = (0..presets).map(|n| format!("\"p{n}\"")).collect();
    let mut text = format!("output = \"out/{{preset}}.gguf\"\npresets = [{}]\n", names.join(", "));
    for n in 0..presets {
        text += &format!(
            "[preset.p{n}]\nscales = \"none\"\norder = \"none\"\nrounding = \"nearest\"\ndamp = 0.{:03}\n",
            n + 1
        );
    }
    text + "[[model]]\npath = \"m.gguf\"\n"
}

fn dir(batch: &str) -> Dir {
    let dir = Dir::new();
    dir.write("b.toml", batch.as_bytes());
    dir
}

fn outputs(dir: &Dir) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir.file("out")).map_or_else(|_| Vec::new(), |all| all.flatten().collect());
    let names = entries.into_iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.map(|name| (name.clone(), dir.read(&format!("out/{name}")))).collect()
}

fn events(dir: &Dir, name: &str) -> Vec<Value> {
    let text = String::from_utf8(dir.read(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn statuses(record: &Value) -> Vec<String> {
    let jobs = record["jobs"].as_array().unwrap();
    jobs.iter().map(|job| format!("{}: {}", job["job"].as_str().unwrap(), job["status"].as_str().unwrap())).collect()
}

/// The record of a run that ended with `code`.
fn record(done: &Done, code: i32) -> Value {
    assert_eq!(done.code, Some(code), "{}", done.stderr);
    serde_json::from_str(&done.stdout).unwrap()
}

#[test]
fn outputs_are_those_of_single_runs_whatever_is_shared() {
    let both = dir(&two_jobs());
    both.tcq4("batch b.toml").ok();
    let all = outputs(&both);
    assert_eq!(all.keys().collect::<Vec<_>>(), ["tiny-llama-best.gguf", "tiny-llama-fast.gguf"]);
    // Alone, with nothing to share, each makes the same bytes.
    for preset in ["fast", "best"] {
        let alone = dir(&two_jobs().replace("\"fast\", \"best\"", &format!("\"{preset}\"")));
        alone.tcq4("batch b.toml --jobs 2").ok();
        let name = format!("tiny-llama-{preset}.gguf");
        assert!(outputs(&alone)[&name] == all[&name], "{preset}");
        // And a user by hand, with the statistics under the name that the file records.
        let statistics = std::fs::read_dir(alone.file(".tcq4-batch/statistics")).unwrap().flatten();
        let mut names = statistics.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let statistics = names.find(|name| name.ends_with(".gguf") && !name.contains("moments")).unwrap();
        let line = format!("convert MODEL -o x.gguf -c CALIBRATION -n 2 --ctx 64 --preset {preset}");
        alone.tcq4(&format!("{line} --stats .tcq4-batch/statistics/{statistics} --force")).ok();
        assert!(alone.read("x.gguf") == all[&name], "{preset}");
    }
    // Two that need second moments keep and share them.
    let shared = two_jobs().replace("\"fast\", \"best\"", "\"best\", \"again\"")
        + "[preset.again]\npreset = \"best\"\nrefine = 1\n";
    let shared = dir(&shared);
    shared.tcq4("batch b.toml --jobs 2").ok();
    let kept = std::fs::read_dir(shared.file(".tcq4-batch/statistics")).unwrap().flatten();
    assert!(kept.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with(".moments.gguf")));
    assert!(outputs(&shared)["tiny-llama-best.gguf"] == all["tiny-llama-best.gguf"]);
}

#[test]
fn what_is_done_is_not_done_again_and_what_changed_is() {
    let dir = dir(&two_jobs());
    let run = |code| record(&dir.tcq4("batch b.toml --json"), code);
    assert_eq!(statuses(&run(0)), ["tiny-llama/fast: done", "tiny-llama/best: done"]);
    let first = outputs(&dir);
    assert_eq!(statuses(&run(0)), ["tiny-llama/fast: skipped", "tiny-llama/best: skipped"]);
    // Another gate: the output is there, and only measured again.
    dir.write("b.toml", two_jobs().replace("max-kld = 0.5", "max-kld = 0.4").as_bytes());
    let measured = record(&dir.tcq4("batch b.toml --json --events e.jsonl"), 0);
    assert_eq!(statuses(&measured), ["tiny-llama/fast: done", "tiny-llama/best: done"]);
    assert!(outputs(&dir) == first);
    let phases: BTreeSet<String> =
        events(&dir, "e.jsonl").iter().filter_map(|event| Some(event["phase"].as_str()?.to_owned())).collect();
    assert!(
        phases.contains("KL divergence") && !phases.contains("calibrate") && !phases.contains("quantize"),
        "{phases:?}"
    );
    // A gate that it does not pass takes its name away, and one that it passes gives it back.
    dir.write("b.toml", two_jobs().replace("max-kld = 0.5", "max-kld = 1e-9").as_bytes());
    assert_eq!(statuses(&run(4)), ["tiny-llama/fast: rejected", "tiny-llama/best: rejected"]);
    assert_eq!(
        outputs(&dir).into_keys().collect::<Vec<_>>(),
        ["tiny-llama-best.rejected.gguf", "tiny-llama-fast.rejected.gguf"]
    );
    dir.write("b.toml", two_jobs().as_bytes());
    assert_eq!(statuses(&run(0)), ["tiny-llama/fast: done", "tiny-llama/best: done"]);
    assert!(outputs(&dir) == first);
    // Another text: other statistics, other outputs.
    dir.write("b.toml", two_jobs().replace("samples = 2", "samples = 3").as_bytes());
    assert_eq!(statuses(&run(0)), ["tiny-llama/fast: done", "tiny-llama/best: done"]);
    assert!(outputs(&dir)["tiny-llama-fast.gguf"] != first["tiny-llama-fast.gguf"]);
    // An output that somebody changed is not replaced without being asked.
    dir.write("out/tiny-llama-fast.gguf", b"mine");
    let refused = run(3);
    assert_eq!(statuses(&refused), ["tiny-llama/fast: failed", "tiny-llama/best: skipped"]);
    assert!(refused["jobs"][0]["message"].as_str().unwrap().ends_with("and is not what this batch wrote"));
    assert_eq!(dir.read("out/tiny-llama-fast.gguf"), b"mine");
    dir.tcq4("batch b.toml --force").ok();
    assert!(dir.read("out/tiny-llama-fast.gguf").len() > 1000);
}

/// Runs that are killed at times that a seed chose, each twice, end in the bytes of a run that was not.
#[test]
fn thirty_kills_change_nothing() {
    let mut rng = ChaCha8Rng::seed_from_u64(30);
    let mut cut = 0;
    for (presets, points) in [("\"fast\", \"balanced\"", 24), ("\"fast\", \"best\"", 6)] {
        let batch = jobs_of(presets);
        let whole = dir(&batch);
        let started = Instant::now();
        whole.tcq4("batch b.toml --jobs 2").ok();
        let (length, expected) = (started.elapsed().as_secs_f64(), outputs(&whole));
        for point in 0..points {
            let dir = dir(&batch);
            for _ in 0..2 {
                let mut child = dir.start("batch b.toml --jobs 2");
                std::thread::sleep(Duration::from_secs_f64(length * rng.random::<f64>()));
                child.kill().unwrap();
                cut += usize::from(!child.wait().unwrap().success());
            }
            let done = dir.tcq4("batch b.toml --jobs 2");
            assert_eq!(done.code, Some(0), "{presets}, point {point}: {}", done.stderr);
            assert!(outputs(&dir) == expected, "{presets}, point {point}");
            let left = std::fs::read_dir(dir.file(".tcq4-batch/temporary")).unwrap().count();
            assert_eq!(left, 0, "{presets}, point {point}: temporary files");
        }
    }
    assert!(cut >= 30, "only {cut} of 60 runs were cut short");
}

#[test]
fn two_batches_share_the_work() {
    let alone = dir(&two_jobs());
    alone.tcq4("batch b.toml").ok();
    let dir = dir(&two_jobs());
    let mut other = dir.start("batch b.toml --events e.jsonl --jobs 2");
    let done = dir.tcq4("batch b.toml --events e.jsonl --jobs 2");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(other.wait().unwrap().success());
    assert!(outputs(&dir) == outputs(&alone));
    let begun: Vec<String> = events(&dir, "e.jsonl")
        .iter()
        .filter(|event| event["event"] == "job-begin")
        .map(|event| event["job"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((begun.len(), begun.iter().collect::<BTreeSet<_>>().len()), (2, 2), "each was done once: {begun:?}");
}

#[test]
fn a_signal_ends_it_and_the_next_run_goes_on() {
    let batch = two_jobs().replace("samples = 2\nctx = 64", "samples = 48\nctx = 512");
    let dir = dir(&batch);
    let mut child = dir.start("batch b.toml --events e.jsonl");
    let begun = Instant::now();
    while !dir.file("e.jsonl").exists() || !events(&dir, "e.jsonl").iter().any(|event| event["phase"] == "calibrate") {
        assert!(begun.elapsed() < Duration::from_secs(60), "the text does not run");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let last = events(&dir, "e.jsonl").pop().unwrap();
    assert_eq!((last["event"].as_str(), last["exit_code"].as_u64()), (Some("batch-end"), Some(130)));
    assert_eq!(last["jobs"]["interrupted"], 2);
    let statistics = std::fs::read_dir(dir.file(".tcq4-batch/statistics")).unwrap().flatten();
    let kept = statistics.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with(".partial"));
    assert!(kept, "the text that was done is kept");
    assert!(outputs(&dir).is_empty());
    let before = events(&dir, "e.jsonl").len();
    dir.tcq4("batch b.toml --events e.jsonl").ok();
    let all = events(&dir, "e.jsonl").split_off(before);
    let first = all.iter().find(|event| event["event"] == "phase-progress" && event["phase"] == "calibrate").unwrap();
    let (done, total) = (first["done"].as_u64().unwrap(), first["total"].as_u64().unwrap());
    assert!(done > total / 48, "after one chunk at the latest it would stand at {}: {done}", total / 48);
}

#[test]
fn what_fell_back_is_no_output_where_that_is_refused() {
    // So little memory makes GPTQ round blocks of columns by themselves.
    let batch = |gate: &str| {
        format!(
            "output = \"out/m.gguf\"\npresets = [\"p\"]\n{gate}\n{}[types]\nstrict = true\n[preset.p]\nrounding = \"gptq\"\n\
             memory = \"3M\"\n[[model]]\npath = \"{}\"\n",
            calibration(),
            fixture("models/tiny-llama-f16.gguf").display()
        )
    };
    let dir = dir(&batch(""));
    let run = |code| record(&dir.tcq4("batch b.toml --json"), code);
    for gate in ["", "gates = { max-bits = 16 }", "rejected = \"remove\"\ngates = { max-bits = 15 }"] {
        dir.write("b.toml", batch(gate).as_bytes());
        let found = run(4);
        assert_eq!(found["jobs"][0]["status"], "rejected", "{gate}: {found}");
        assert_eq!(found["jobs"][0]["message"], "steps fell back, which `strict` refuses");
        assert!(!dir.file("out/m.gguf").exists() && !dir.file("out/m.unchecked.gguf").exists());
    }
}

#[test]
fn a_pattern_and_its_outputs_lie_in_one_folder() {
    let dir = dir(&(without_text(2).replace("out/{preset}", "{name}-{preset}").replace("m.gguf", "*.gguf")));
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    for status in ["done", "skipped"] {
        let found = record(&dir.tcq4("batch b.toml --json"), 0);
        assert_eq!(statuses(&found), [format!("m/p0: {status}"), format!("m/p1: {status}")]);
    }
}

#[test]
fn what_others_wrote_is_not_replaced() {
    let dir = dir(&without_text(1));
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    std::fs::create_dir(dir.file("out")).unwrap();
    for name in ["out/p0.gguf", "out/p0.unchecked.gguf", "out/p0.rejected.gguf"] {
        dir.write(name, b"mine");
        let found = record(&dir.tcq4("batch b.toml --json"), 3);
        let message = format!("{name}: the file exists already, and is not what this batch wrote");
        assert_eq!(found["jobs"][0]["message"], message.as_str());
        assert_eq!(dir.read(name), b"mine");
        std::fs::remove_file(dir.file(name)).unwrap();
    }
    // Not even with --force where it is the model itself, or a text.
    dir.write("b.toml", without_text(1).replace("out/{preset}.gguf", "m.gguf").as_bytes());
    let model = dir.read("m.gguf");
    let found = record(&dir.tcq4("batch b.toml --json --force"), 3);
    assert_eq!(found["jobs"][0]["status"], "failed", "{found}");
    assert!(dir.read("m.gguf") == model);
}

#[test]
fn a_gate_that_cannot_be_measured_is_told_before_the_work() {
    let dir = dir(&(without_text(1) + "[gates]\nmax-kld = 1\ntexts = [\"x:0.5:0.5\"]\nctx = 1\n"));
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    let found = record(&dir.tcq4("batch b.toml --json --events e.jsonl"), 3);
    assert_eq!(found["jobs"][0]["status"], "failed", "{found}");
    assert!(!events(&dir, "e.jsonl").iter().any(|event| event["event"] == "job-begin"));
}

#[test]
fn rounding_layer_by_layer_goes_on_where_it_was_and_not_with_other_settings() {
    let batch = |refine: u32| {
        let preset = format!("[preset.s]\npreset = \"best\"\nsequential = true\nlayer-batch = 1\nrefine = {refine}\n");
        jobs_of("\"s\"") + &preset
    };
    let dir = dir(&batch(0));
    let mut child = dir.start("batch b.toml --events e.jsonl");
    let begun = Instant::now();
    let partial = || dir.file("out/tiny-llama-s.unchecked.gguf.partial").exists();
    while !partial() && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no layer is done");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(partial(), "the run was over before it was killed");
    dir.write("b.toml", batch(1).as_bytes());
    dir.tcq4("batch b.toml").ok();
    assert!(!partial());
}

#[test]
fn a_gate_fails_its_job_alone() {
    let text = fixture("text/evaluation.txt").display().to_string();
    let model = fixture("models/tiny-llama-f16.gguf").display().to_string();
    let batch = format!(
        "presets = [\"fast\"]\noutput = \"out/{{name}}.gguf\"\n{}[gates]\ntexts = [\"{text}\"]\nchunks = 1\nctx = 32\n\
         [[model]]\npath = \"{model}\"\nname = \"far\"\ngates = {{ max-kld = 1e-9 }}\n\
         [[model]]\npath = \"{model}\"\nname = \"big\"\ngates = {{ max-bits = 3 }}\n\
         [[model]]\npath = \"moe.gguf\"\ngates = {{ min-expert-share = 0.999 }}\n\
         [[model]]\npath = \"{model}\"\nname = \"good\"\ngates = {{ max-kld = 0.5, max-bits = 16, min-expert-share = 1 }}\n",
        calibration()
    );
    let dir = dir(&batch);
    TinyModel { experts: 4, ..TinyModel::default() }.write(&dir.file("moe.gguf"));
    let found = record(&dir.tcq4("batch b.toml --json"), 4);
    assert_eq!(statuses(&found), ["far/fast: rejected", "big/fast: rejected", "moe/fast: rejected", "good/fast: done"]);
    let message = |at: usize| found["jobs"][at]["message"].as_str().unwrap();
    assert!(
        message(0).starts_with("KL divergence 0.0") && message(0).ends_with("at most 0.000000001 allowed"),
        "{}",
        message(0)
    );
    assert!(message(1).ends_with("bits a weight, at most 3 allowed") && message(2).starts_with("an expert saw 0."));
    let names: Vec<String> = outputs(&dir).into_keys().collect();
    assert_eq!(
        names,
        ["far.rejected.gguf", "good.gguf", "moe.rejected.gguf"],
        "what is too big is known before the work"
    );
    // Rejected for the same reason without being made again; let through by a wider gate as it is.
    let again = dir.tcq4("batch b.toml --json --events e.jsonl");
    assert_eq!(statuses(&record(&again, 4))[0], "far/fast: rejected");
    assert!(!events(&dir, "e.jsonl").iter().any(|event| event["event"] == "phase-begin"));
    let rejected = dir.read("out/far.rejected.gguf");
    dir.write("b.toml", batch.replace("1e-9", "0.5").as_bytes());
    let wider = record(&dir.tcq4("batch b.toml --json"), 4);
    assert_eq!(statuses(&wider)[0], "far/fast: done");
    assert!(dir.read("out/far.gguf") == rejected && !dir.file("out/far.rejected.gguf").exists());
}

#[test]
fn a_job_that_fails_stops_no_other_unless_asked() {
    let model = fixture("models/tiny-llama-f16.gguf").display().to_string();
    let batch = format!(
        "presets = [\"fast\"]\noutput = \"out/{{name}}.gguf\"\n{}[[model]]\npath = \"broken.gguf\"\n\
         [[model]]\npath = \"none/*.gguf\"\nname = \"none\"\n[[model]]\npath = \"{model}\"\n",
        calibration()
    );
    let dir = dir(&batch);
    dir.write("broken.gguf", b"GGUF, or not");
    let found = record(&dir.tcq4("batch b.toml --json"), 3);
    assert_eq!(statuses(&found), ["broken/fast: failed", "none/fast: failed", "tiny-llama/fast: done"]);
    assert_eq!(found["jobs"][1]["message"], "`none/*.gguf`: no file matches");
    // One that fails at work: the output's folder is a file.
    let stop = batch
        .replace("out/{name}", "{name}")
        .replace("broken.gguf", &model)
        .replace("presets", "on-failure = \"stop\"\npresets");
    let stop = stop.replacen("[[model]]\n", "[[model]]\nname = \"a\"\noutput = \"b.toml/x.gguf\"\n", 1);
    dir.write("b.toml", stop.as_bytes());
    let found = dir.tcq4("batch b.toml --json");
    let found: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(statuses(&found), ["a/fast: failed", "none/fast: failed", "tiny-llama/fast: not-begun"]);
}

#[test]
fn what_may_pass_is_tried_again_and_nothing_else() {
    let dir = dir(&(without_text(1) + "\n").replace("presets", "retry-pause = 0.2\nretries = 5\npresets"));
    TinyModel::default().write(&dir.file("m.gguf"));
    std::fs::create_dir(dir.file("out")).unwrap();
    let part = std::fs::File::create(dir.file("out/.p0.unchecked.gguf.part")).unwrap();
    part.lock().unwrap();
    let child = dir.start("batch b.toml --events e.jsonl");
    let begun = Instant::now();
    let retried =
        || dir.file("e.jsonl").exists() && events(&dir, "e.jsonl").iter().any(|event| event["event"] == "retry");
    while !retried() {
        assert!(begun.elapsed() < Duration::from_secs(30), "no second try");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(part);
    let mut child = child;
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let all = events(&dir, "e.jsonl");
    let retry = all.iter().find(|event| event["event"] == "retry").unwrap();
    assert!(retry["message"].as_str().unwrap().ends_with("another run is writing this file"));
    // Weights that are no numbers stay so.
    let mut bytes = dir.read("m.gguf");
    let at = bytes.len() - 40_000;
    bytes[at..at + 2].copy_from_slice(&0x7e00_u16.to_le_bytes());
    dir.write("m.gguf", &bytes);
    let found = record(&dir.tcq4("batch b.toml --json"), 3);
    assert_eq!(
        (found["jobs"][0]["status"].as_str(), found["jobs"][0]["numbers"]["attempts"].as_u64()),
        (Some("failed"), Some(1))
    );
}

#[test]
fn jobs_that_do_not_fit_are_not_begun() {
    let dir = dir(&two_jobs());
    for (option, what) in [("--memory 1M", "memory: "), ("--disk 1M", "disk: ")] {
        let found = record(&dir.tcq4(&format!("batch b.toml --json {option} --events e.jsonl")), 3);
        assert_eq!(statuses(&found), ["tiny-llama/fast: too-large", "tiny-llama/best: too-large"]);
        assert!(found["jobs"][0]["message"].as_str().unwrap().starts_with(what));
    }
    assert!(!events(&dir, "e.jsonl").iter().any(|event| event["event"] == "job-begin"));
    // The first fits, the second does not any more.
    let found = record(&dir.tcq4("batch b.toml --json --disk 10M"), 3);
    assert_eq!(statuses(&found), ["tiny-llama/fast: done", "tiny-llama/best: too-large"]);
}

#[test]
fn the_plan_is_shown_and_nothing_done() {
    let dir = dir(&two_jobs());
    let plan = dir.tcq4("batch b.toml --dry-run --timed --json").ok().record("batch-plan");
    let jobs = plan["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 2);
    assert_eq!(jobs[0]["statistics"], jobs[1]["statistics"], "both presets share the text");
    for job in jobs {
        assert_eq!(job["plan"], "to do");
        assert!(job["estimate"]["seconds"].as_f64().unwrap() > 0.0 && job["memory"].as_u64().unwrap() > 1 << 20);
    }
    let text = dir.tcq4("batch b.toml --dry-run").ok().stdout;
    assert!(text.contains("2 of 2 jobs to do, 1 at a time") && text.contains("which 2 jobs share"), "{text}");
    assert!(!dir.file("out").exists());
    dir.tcq4("batch b.toml").ok();
    let size = dir.read("out/tiny-llama-fast.gguf").len() as f64;
    let said = jobs[0]["estimate"]["bytes"].as_f64().unwrap();
    assert!((size / said - 1.0).abs() < 0.1, "{size} bytes, {said} planned"); // metadata come on top
    assert!(dir.tcq4("batch b.toml --dry-run").ok().stdout.contains("0 of 2 jobs to do"));
}

/// The batch that the README shows is the one of the fixtures, and does what it is said to do.
#[test]
fn the_example_runs() {
    let text = std::fs::read_to_string(fixture("batch.toml")).unwrap();
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    assert!(readme.contains(&format!("```toml\n{text}```")), "the README shows another batch");
    let here = fixture("").display().to_string();
    let batch = text.replace("../target/batch/", "").replace("\"text/", &format!("\"{here}text/"));
    let dir = dir(&batch.replace("\"models/", &format!("\"{here}models/")));
    let found = record(&dir.tcq4("batch b.toml --json --jobs 2"), 0);
    assert_eq!(statuses(&found), ["tiny-llama/fast: done", "tiny-llama/best: done"]);
    let divergence = |at: usize| found["jobs"][at]["numbers"]["kld"][0].as_f64().unwrap();
    assert!(divergence(1) < divergence(0) && divergence(0) < 0.02);
}

#[test]
fn mistakes_are_told_with_their_line() {
    let dir = dir("presets = [\"fast\"]\n[gates]\nmax-kl = 1\n[[model]]\npath = \"m.gguf\"\n");
    let hint = "\nhint: the README shows a batch file with every key";
    let keys = "`max-kld`, `max-bits`, `min-expert-share`, `texts`, `chunks`, `ctx`";
    dir.tcq4("batch b.toml")
        .fails(3, &format!("error: b.toml: line 3: unknown field `max-kl`, expected one of {keys}{hint}"));
    dir.write("b.toml", b"[[model]]\npath = \"m\"\npresets = [\"slow\"]\n");
    dir.tcq4("batch b.toml").fails_like(3, "error: preset `slow` is neither fast, balanced or best");
    dir.tcq4("batch none.toml").fails_like(3, "error: none.toml: cannot open: ");
    dir.tcq4("batch b.toml --report x.txt").fails_like(2, "error: ");
    dir.tcq4("batch b.toml --report b.toml").fails_like(2, "error: ");
    dir.tcq4("batch b.toml --events b.toml").fails_like(3, "error: b.toml: ");
}

#[test]
fn two_hundred_jobs_that_are_done_take_less_than_two_seconds() {
    let dir = dir(&without_text(200));
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("m.gguf"));
    dir.tcq4("batch b.toml --jobs 2").ok();
    let started = Instant::now();
    let found = record(&dir.tcq4("batch b.toml --json --metrics m.prom"), 0);
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(found["counts"], serde_json::json!({ "skipped": 200 }));
    assert!(seconds < 2.0, "{seconds} s");
}

/// Fields of every kind of event, as the README lists them.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let rows = readme
        .lines()
        .skip_while(|line| *line != "| event | fields |")
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').splitn(2, '|').collect();
        (quoted(cells[0]).pop_first().unwrap(), quoted(cells[1]))
    };
    rows.map(row).collect()
}

#[test]
fn events_metrics_and_reports_say_what_happened() {
    let dir = dir(&two_jobs());
    dir.tcq4("batch b.toml --events e.jsonl --metrics m.prom --report r/ --quiet").ok();
    let documented = documented();
    let all = events(&dir, "e.jsonl");
    for event in &all {
        let fields: BTreeSet<String> = event.as_object().unwrap().keys().cloned().collect();
        let name = event["event"].as_str().unwrap();
        let expected = documented.get(name).unwrap_or_else(|| panic!("`{name}` is not documented"));
        assert_eq!(
            fields.difference(&["time", "event"].map(String::from).into()).cloned().collect::<BTreeSet<_>>(),
            *expected,
            "{name}"
        );
    }
    let seen: BTreeSet<&str> = all.iter().map(|event| event["event"].as_str().unwrap()).collect();
    for name in ["batch-begin", "job-begin", "phase-begin", "phase-end", "note", "job-end", "batch-end"] {
        assert!(seen.contains(name), "{name}");
    }
    assert!(all.windows(2).all(|pair| pair[0]["time"].as_str() <= pair[1]["time"].as_str()));
    let numbers = all.iter().find(|event| event["event"] == "job-end").unwrap()["numbers"].clone();
    assert!(numbers["peak_memory"].as_u64().unwrap() > 1 << 20 && numbers["kld"][0].as_f64().unwrap() > 0.0);
    check_metrics(&String::from_utf8(dir.read("m.prom")).unwrap());
    let names: BTreeSet<String> = std::fs::read_dir(dir.file("r"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in ["report.md", "report.html", "batch.json", "jobs.csv", "divergence.svg", "size.svg", "time.svg"] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    let markdown = String::from_utf8(dir.read("r/report.md")).unwrap();
    assert!(
        markdown.starts_with("# Batch b\n\n2 jobs in ") && markdown.contains("\n| tiny-llama/best | done | "),
        "{markdown}"
    );
    assert_eq!(dir.json("r/batch.json")["counts"]["done"], 2);
    for name in ["one.md", "one.html", "one.json"] {
        dir.tcq4(&format!("batch b.toml --report {name}")).ok();
        assert!(dir.read(name).len() > 100);
    }
}

/// Reads OpenMetrics text strictly: metadata before samples, one group a family, suffixes by kind, no value that is no number.
fn check_metrics(text: &str) {
    let body = text.strip_suffix("# EOF\n").expect("the end");
    let (mut families, mut current, mut samples) = (BTreeSet::new(), (String::new(), String::new()), BTreeMap::new());
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(families.insert(name.to_owned()), "{name} twice");
            current = (name.to_owned(), kind.to_owned());
        } else if let Some(rest) = line.strip_prefix("# UNIT ") {
            let (name, unit) = rest.split_once(' ').unwrap();
            assert!(name == current.0 && name.ends_with(&format!("_{unit}")), "{line}");
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(rest.starts_with(&format!("{} ", current.0)), "{line}");
        } else {
            let (key, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
            let name = key.split('{').next().unwrap();
            let suffix = if current.1 == "counter" { "_total" } else { "" };
            assert_eq!(name, format!("{}{suffix}", current.0), "{line}");
            assert!(!key.contains('{') || key.ends_with("\"}"), "{line}");
            assert!(samples.insert(key.to_owned(), value.to_owned()).is_none(), "{line} twice");
        }
    }
    assert_eq!(samples["tcq4_batch_jobs{state=\"done\"}"], "2");
    assert!(samples.keys().any(|key| key.starts_with("tcq4_batch_job_kl_divergence{job=\"tiny-llama/best\"")));
}
