use std::path::Path;

use super::*;
use crate::error::{Error, RecipeError};

fn parse(text: &str) -> Result<Changes, (usize, Option<String>, String)> {
    Changes::parse(text, Path::new("r.toml")).map_err(|error| match error {
        Error::Recipe(RecipeError::Invalid { line, key, problem, .. }) => (line, key, problem),
        other => panic!("{other}"),
    })
}

#[track_caller]
fn refused(text: &str, line: usize, key: Option<&str>, problem: &str) {
    let (at, found, why) = parse(text).unwrap_err();
    assert_eq!((at, found.as_deref()), (line, key), "{why}");
    assert!(why.contains(problem), "{why}");
}

#[test]
fn every_preset_comes_back_from_its_toml() {
    for recipe in [FAST, BALANCED, BEST, Preset::Best.recipe(true), BALANCED.without_statistics()] {
        let changes = parse(&recipe.to_toml()).unwrap();
        for base in [FAST, BEST] {
            assert_eq!(base.with(&changes), recipe);
        }
    }
}

#[test]
fn a_file_changes_what_it_names_and_nothing_else() {
    let changes =
        parse("# mine\nrounding = \"gptq\"\ndamp = 1\n\nmemory = \"512MiB\" # small\nact-order = false\n").unwrap();
    let expected =
        Recipe { rounding: RoundingRule::Gptq, damp: 1.0, memory: Memory(512 << 20), act_order: false, ..FAST };
    assert_eq!(FAST.with(&changes), expected);
    assert_eq!(parse("preset = \"best\"").unwrap().preset, Some(Preset::Best));
    assert_eq!(parse(""), Ok(Changes::default()));
}

#[test]
fn unknown_keys_are_refused_with_those_that_there_are() {
    refused(
        "rounding = \"gptq\"\nalpha_grid = 5\n",
        2,
        None,
        "unknown field `alpha_grid`, expected one of `preset`, `scales`",
    );
    refused("[gptq]\ndamp = 1\n", 1, None, "unknown field `gptq`");
}

#[test]
fn values_are_refused_with_what_is_allowed() {
    refused(
        "\nscales = \"smooth\"",
        2,
        Some("scales"),
        "unknown variant `smooth`, expected one of `none`, `closed-form`, `awq`",
    );
    refused("salience = \"l3\"", 1, Some("salience"), "expected one of `l1`, `l2`, `max`");
    refused("alpha-grid = 0", 1, Some("alpha-grid"), "integer `0`, expected a whole number from 1 to 1000");
    refused("alpha-grid = 1001", 1, Some("alpha-grid"), "from 1 to 1000");
    refused("refine = -1", 1, Some("refine"), "from 0 to 100");
    refused("samples = 0", 1, Some("samples"), "a whole number from 1");
    refused("damp = -0.5", 1, Some("damp"), "a number of 0 or more");
    refused("damp = inf", 1, Some("damp"), "a number of 0 or more");
    refused("damp = nan", 1, Some("damp"), "a number of 0 or more");
    refused("act-aware = 1", 1, Some("act-aware"), "a number of 0 or more and below 1");
    refused("output-type = \"q9\"", 1, Some("output-type"), "`auto` or a tensor type");
    refused("memory = \"4 apples\"", 1, Some("memory"), "a size in quotes, for instance \"4G\"");
}

#[test]
fn values_of_another_type_are_refused() {
    refused("alpha-grid = \"20\"", 1, Some("alpha-grid"), "string \"20\", expected a whole number from 1 to 1000");
    refused("alpha-grid = 2.5", 1, Some("alpha-grid"), "a whole number");
    refused("act-order = \"yes\"", 1, Some("act-order"), "expected a boolean");
    refused("damp = \"much\"", 1, Some("damp"), "string \"much\", expected a number of 0 or more");
    refused("memory = 4", 1, Some("memory"), "a size in quotes");
    refused("order = 3", 1, Some("order"), "expected one of `none`, `zigzag`, `balanced`");
    refused("salience = false", 1, Some("salience"), "expected one of `l1`, `l2`, `max`");
}

#[test]
fn broken_toml_is_refused_where_it_breaks() {
    refused("damp = 0.1\nrounding = gptq\n", 2, Some("rounding"), "");
    refused("damp = 0.1\ndamp = 0.2\n", 2, Some("damp"), "duplicate key");
    refused("damp\n", 1, None, "");
}

#[test]
fn memory_is_written_as_it_is_read() {
    for (bytes, text) in
        [(4 << 30, "4GiB"), (1_000_000, "1000000B"), (512 << 20, "512MiB"), (1536, "1536B"), (2048, "2KiB")]
    {
        assert_eq!(Memory(bytes).to_string(), text);
        assert_eq!(parse(&format!("memory = \"{text}\"")).unwrap().memory, Some(Memory(bytes)));
    }
}

#[test]
fn needs_are_those_of_the_steps() {
    assert_eq!(FAST.needs(), Needs::CHANNELS);
    assert_eq!(BALANCED.needs(), Needs::CHANNELS | Needs::MEANS);
    assert_eq!(BEST.needs(), Needs::CHANNELS | Needs::SECOND_MOMENTS);
    assert_eq!(BALANCED.without_statistics().needs(), Needs::NOTHING);
    let measured = Recipe { order: OrderRule::Auto, rounding: RoundingRule::Greedy, ..BALANCED };
    assert_eq!(measured.needs().names(), ["channel statistics", "channel means", "sample rows"]);
    for recipe in [FAST, BALANCED, BEST, measured] {
        assert!(recipe.steps().iter().all(|step| step.needs().covers(step.requires())));
    }
}

#[test]
fn records_leave_out_memory_and_chunks() {
    let record = BEST.to_record(true);
    assert!(record.get("memory").is_none() && record.get("samples").is_none());
    assert_eq!(
        (&record["rounding"], &record["order"], &record["act-order"]),
        (&"gptq".into(), &"given".into(), &true.into())
    );
}
