//! Recipes as a user meets them: files, options, presets, what is printed, what is recorded, what is refused. Needs llama.cpp.

use serde_json::{Value, json};
use tcq4::gguf::Source;

use crate::cli::LITTLE;
use crate::support::Dir;

/// The recipe that a file says it was made by.
fn recorded(dir: &Dir, name: &str) -> Value {
    let source = Source::open(&dir.file(name)).unwrap();
    serde_json::from_str(&source.metadata().get_str("tcq4.recipe").unwrap()).unwrap()
}

#[test]
fn a_file_and_the_same_options_give_the_same_bytes() {
    let dir = Dir::new();
    let recipe = "scales = \"awq\"\nalpha-grid = 3\nsalience = \"l1\"\norder = \"auto\"\nrounding = \"gptq\"\ndamp = 0.05\n\
                  act-order = false\nrefine = 1\nactivations = \"int4\"\n";
    dir.write("r.toml", recipe.as_bytes());
    let options = "--scales awq --alpha-grid 3 --salience l1 --order auto --rounding gptq --damp 0.05 --no-act-order --refine 1 --activations int4";
    dir.tcq4(&format!("convert MODEL -o file.gguf {LITTLE} --recipe r.toml")).ok();
    dir.tcq4(&format!("convert MODEL -o options.gguf {LITTLE} {options}")).ok();
    assert!(dir.read("file.gguf") == dir.read("options.gguf"));
    let recipe = recorded(&dir, "file.gguf");
    assert_eq!(
        (&recipe["scales"], &recipe["alpha-grid"], &recipe["encoder"]),
        (&json!("awq"), &json!(3), &json!("default"))
    );
}

#[test]
fn options_come_before_the_file_and_the_file_before_the_preset() {
    let dir = Dir::new();
    dir.write("r.toml", b"preset = \"best\"\nrefine = 7\nscales = \"none\"\nact-order = false\n");
    let printed = |line: &str| {
        dir.tcq4(&format!("convert MODEL --print-recipe --json {line}")).record("recipe")["recipe"].clone()
    };
    let of = |recipe: &Value| ["rounding", "refine", "scales", "act-order", "samples"].map(|key| recipe[key].clone());
    let expected = |values: Value| values.as_array().unwrap().clone();
    assert_eq!(of(&printed("")).to_vec(), expected(json!(["greedy", 2, "closed-form", true, 32])));
    assert_eq!(of(&printed("--recipe r.toml")).to_vec(), expected(json!(["gptq", 7, "none", false, 64])));
    let line = "--recipe r.toml --preset fast --refine 1 --act-order -n 5";
    assert_eq!(of(&printed(line)).to_vec(), expected(json!(["nearest", 1, "none", true, 5])));
}

#[test]
fn a_printed_recipe_comes_back_the_same() {
    let dir = Dir::new();
    for line in
        ["", "--preset best", "--preset fast --scales awq --order balanced --memory 100M --damp 0 --encoder default"]
    {
        let printed = dir.tcq4(&format!("convert MODEL --print-recipe {line}")).ok().stdout;
        dir.write("r.toml", printed.as_bytes());
        assert_eq!(dir.tcq4("convert MODEL --print-recipe --recipe r.toml").ok().stdout, printed);
        assert_eq!(dir.tcq4("convert MODEL --print-recipe --preset best --recipe r.toml").ok().stdout, printed);
    }
    assert_eq!(dir.names(), ["r.toml"]);
}

#[test]
fn what_is_no_recipe_is_refused_with_line_key_and_what_is_allowed() {
    let dir = Dir::new();
    let hint = "hint: `tcq4 convert MODEL --print-recipe` shows every key with its value";
    let refused = |text: &[u8], message: &str| {
        dir.write("r.toml", text);
        for line in ["convert MODEL -o out.gguf", "quantize MODEL out.gguf", "analyze MODEL"] {
            dir.tcq4(&format!("{line} --recipe r.toml")).fails(3, &format!("error: r.toml: {message}\n{hint}"));
        }
    };
    refused(
        b"refine = 3\n\nrefien = 4\n",
        "line 3: unknown field `refien`, expected one of `preset`, `scales`, `salience`, `alpha-grid`, `order`, `perm-apply`, \
         `activations`, `encoder`, `rounding`, `damp`, `act-order`, `shrink`, `refine`, `sequential`, `layer-batch`, \
         `embedding-type`, `output-type`, `target-bpw`, `act-aware`, `sensitivity`, `samples`, `memory`",
    );
    refused(
        b"rounding = \"gptk\"",
        "line 1: `rounding`: unknown variant `gptk`, expected one of `nearest`, `greedy`, `gptq`, `gptaq`",
    );
    refused(
        b"\nrefine = 1000",
        "line 2: `refine`: invalid value: integer `1000`, expected a whole number from 0 to 100",
    );
    refused(b"act-order = 1", "line 1: `act-order`: invalid type: integer `1`, expected a boolean");
    refused(b"damp = 1\n\xff", "line 2: the file is not UTF-8 text, as TOML is");
    dir.write("big.toml", &vec![b'#'; 1 << 21]);
    dir.tcq4("convert MODEL -o out.gguf --recipe big.toml").fails(
        3,
        &format!("error: big.toml: 2097152 bytes are too many for a recipe, at most 1048576 are read\n{hint}"),
    );
    dir.tcq4("convert MODEL -o out.gguf --recipe none.toml")
        .fails(3, "error: none.toml: cannot open: No such file or directory (os error 2)");
    dir.tcq4("convert MODEL -o out.gguf --recipe .").fails_like(3, "error: .: cannot read: Is a directory");
    dir.write("r.toml", b"");
    dir.tcq4("convert MODEL -o r.toml --recipe r.toml --force")
        .fails_like(3, "error: r.toml: this output is the same file as the input");
}

#[test]
fn steps_that_lack_what_they_need_are_refused() {
    let dir = Dir::new();
    let stats = "hint: pass --stats FILE, made by `tcq4 calibrate --stats` or llama-imatrix, or use `tcq4 convert`";
    dir.tcq4("quantize MODEL out.gguf --scales awq")
        .fails(2, &format!("error: --scales awq needs channel statistics of the activations\n{stats}"));
    dir.tcq4("quantize MODEL out.gguf --preset best").fails(
        2,
        "error: --rounding gptq needs second moments of the activations\nhint: pass --second-moments FILE, made by `tcq4 calibrate --second-moments`, or use `tcq4 convert`, which runs the model",
    );
    dir.write("r.toml", b"encoder = \"parity\"\nrounding = \"gptq\"\n");
    dir.tcq4("convert MODEL -o out.gguf --recipe r.toml")
        .fails_like(2, "error: GPTQ and greedy rounding choose other codes");
}

#[test]
fn what_no_step_needs_is_not_measured() {
    let dir = Dir::new();
    let nothing = "--scales none --order none --rounding nearest";
    let done = dir.tcq4(&format!("convert MODEL -o a.gguf {LITTLE} {nothing}")).ok();
    assert!(
        !done.stderr.contains("calibrate") && !done.stdout.contains("The text runs"),
        "{}{}",
        done.stdout,
        done.stderr
    );
    dir.tcq4("quantize MODEL b.gguf").ok();
    crate::cli::assert_same_tensors(&dir, "a.gguf", "b.gguf");
    dir.tcq4(&format!("convert MODEL -o c.gguf {LITTLE} {nothing} --stats s.gguf")).ok();
    assert!(dir.names().contains(&"s.gguf".to_owned()), "statistics that are kept are measured");
}

#[test]
fn the_head_is_of_the_type_that_was_said_last() {
    let dir = Dir::new();
    let head = |line: &str| {
        let plan = dir.tcq4(&format!("convert MODEL -o out.gguf --dry-run --json {line}")).record("plan");
        let tensors = plan["plan"]["tensors"].as_array().unwrap().clone();
        tensors.iter().find(|tensor| tensor["name"] == "token_embd.weight").unwrap()["to"].clone()
    };
    assert_eq!(head(""), "q6_K");
    assert_eq!(head("--preset best"), "q8_0");
    assert_eq!(head("--preset best --output-type q6_k"), "q6_K");
    assert_eq!(head("--preset best --embedding-type f16"), "f16", "embedding and head are one tensor");
    dir.write("r.toml", b"preset = \"best\"\noutput-type = \"auto\"\n");
    assert_eq!(head("--recipe r.toml"), "q6_K");
    assert_eq!(head("--recipe r.toml --output-type q5_k"), "q5_K");
}

#[test]
fn mixed_precision_is_part_of_a_recipe() {
    let dir = Dir::new();
    dir.write("r.toml", b"target-bpw = 5.5\nact-aware = 0.3\nsensitivity = \"estimate\"\nactivations = \"int4\"\n");
    dir.tcq4(&format!("convert MODEL -o file.gguf {LITTLE} --recipe r.toml")).ok();
    let options = "--target-bpw 5.5 --act-aware 0.3 --sensitivity estimate --activations int4";
    let record = dir.tcq4(&format!("convert MODEL -o options.gguf {LITTLE} {options} --json")).record("convert");
    assert!(dir.read("file.gguf") == dir.read("options.gguf"));
    assert!(record["types"].is_object() && record["act_aware"].is_object(), "{record}");
    let recipe = recorded(&dir, "file.gguf");
    assert_eq!((&recipe["target-bpw"], &recipe["act-aware"]), (&json!(5.5), &json!(0.3)));
}

#[test]
fn every_tensor_records_its_steps() {
    let dir = Dir::new();
    let line = format!("convert MODEL -o out.gguf {LITTLE} --scales awq --alpha-grid 2 --order auto --rounding gptq");
    let record = dir.tcq4(&format!("{line} --json")).record("convert");
    for loss in record["losses"].as_array().unwrap() {
        let steps = loss["steps"].as_array().unwrap();
        let column = |key: &str| steps.iter().map(|step| step[key].as_str().unwrap_or("")).collect::<Vec<_>>();
        assert_eq!(column("step"), ["scale", "order", "rotate", "encode", "round"]);
        assert_eq!(column("asked"), ["awq", "auto", "fwht-256", "default", "gptq"]);
        let [scale, order, _, _, round] = steps.as_slice() else { panic!("{loss}") };
        for step in [scale, order, round].into_iter().filter(|step| step["fallback"].is_null()) {
            assert!(step["after"].as_f64().unwrap() <= step["before"].as_f64().unwrap() * 1.01, "{step}");
        }
        assert_eq!(round["after"], loss["output"]["compensated"]);
        assert!(scale["fallback"].is_null() != scale["alpha"].is_null(), "{scale}");
    }
}

#[test]
fn fallbacks_are_recorded_named_and_counted() {
    let dir = Dir::new();
    // 128 tokens are fewer than the columns: without damping no second moment has a factor.
    let line = format!("convert MODEL -o out.gguf {LITTLE} --rounding gptq --damp 0");
    let record = dir.tcq4(&format!("{line} --json")).record("convert");
    let losses = record["losses"].as_array().unwrap();
    let raised = |loss: &&Value| {
        loss["steps"][4]["fallback"].as_str().is_some_and(|why| why.starts_with("damping was raised to "))
    };
    let count = losses.iter().filter(raised).count();
    assert!(2 * count > losses.len(), "{count} of {}", losses.len());
    assert!(losses.iter().all(|loss| loss["steps"][4]["done"] == "gptq"));
    let text = dir.tcq4(&format!("{line} --force --strict")).ok().stdout;
    let counted = text.lines().filter_map(|line| {
        let (count, rest) = line.strip_prefix("rounding gptq for ")?.split_once(" tensors: damping was raised to ")?;
        rest.ends_with("the second moment had no factor").then(|| count.parse::<usize>().unwrap())
    });
    assert_eq!(counted.sum::<usize>(), count, "{text}");
    let plain = dir.tcq4("quantize MODEL plain.gguf --json").record("convert");
    let steps = plain["losses"].as_array().unwrap().iter().flat_map(|loss| loss["steps"].as_array().unwrap());
    assert!(steps.clone().count() == 28 * 5 && steps.clone().all(|step| step["fallback"].is_null()));
}

#[test]
fn a_timed_dry_run_says_how_long_it_takes_and_by_what() {
    let dir = Dir::new();
    let line = format!("convert MODEL -o out.gguf {LITTLE} --rounding gptq --dry-run");
    let plain = dir.tcq4(&format!("{line} --json")).record("plan")["effort"].clone();
    assert_eq!(plain["measures"], json!(["channel statistics", "second moments"]));
    assert_eq!((&plain["passes"], &plain["times"]), (&json!(1), &Value::Null));
    let timed = dir.tcq4(&format!("{line} --timed --json")).record("plan")["effort"]["times"].clone();
    for key in ["text_seconds", "encode_seconds", "round_seconds"] {
        assert!(timed[key].as_f64().is_some_and(|seconds| seconds > 0.0 && seconds < 600.0), "{timed}");
    }
    assert!(timed["encode_share"].as_f64().is_some_and(|share| share > 0.0 && share <= 1.0), "{timed}");
    let text = dir.tcq4("quantize MODEL out.gguf --dry-run --timed").ok().stdout;
    assert!(text.contains("\nTime about ") && !text.contains("for the text"), "{text}");
    assert_eq!(dir.names(), [""; 0]);
    dir.tcq4("convert MODEL -o out.gguf --timed")
        .fails_like(2, "error: the following required arguments were not provided");
}
