//! Arguments resolved into the plain settings of the library: nothing is left open here, and nothing is done yet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{MethodArgs, OutputArgs, TypeArgs};
use super::values::{Compat, ScalesArg};
use crate::convert::{Codes, Compensation, Conversion, PlanSettings, Target, TypeRule};
use crate::error::{Error, Result};
use crate::gguf::{Sharding, Source};
use crate::math::Permutation;
use crate::quant::{Apply, Order, Orders, Salience, Scales, Settings};
use crate::tcq::Codec;
use crate::util::atomic_file::{check_target, same_file};

/// What becomes of the tensors.
pub(super) fn plan_settings(types: &TypeArgs) -> PlanSettings {
    PlanSettings {
        embedding_type: types.embedding_type,
        output_type: types.output_type,
        fallback: types.fallback,
        rules: types.tensor_types.iter().map(|r| TypeRule { pattern: r.pattern.clone(), ty: r.ty }).collect(),
        allow_requantize: types.allow_requantize,
        fork_ids: types.compat == Some(Compat::LlamaCppRrs),
    }
}

/// How weights are prepared. Without statistics there is nothing to scale by, and no order unless one is asked for.
///
/// # Errors
/// Scales that need statistics where there are none.
pub(super) fn method_settings(
    method: &MethodArgs,
    plan: &Conversion,
    has_statistics: bool,
    given: Option<BTreeMap<String, Permutation>>,
    codec: Codec,
) -> Result<Settings> {
    let scales = match method.scales {
        Some(ScalesArg::None) => Scales::None,
        None if !has_statistics => Scales::None,
        Some(_) if !has_statistics => {
            return Err(Error::Usage {
                message: "--scales needs statistics of the activations".into(),
                hint: Some(
                    "pass --stats FILE, made by `tcq4 calibrate --stats` or llama-imatrix, or use `tcq4 convert`"
                        .into(),
                ),
            });
        }
        None | Some(ScalesArg::ClosedForm) => Scales::ClosedForm,
        Some(ScalesArg::Awq) => Scales::Awq { salience: method.salience.into(), steps: method.alpha_grid },
    };
    let orders = match (given, method.order) {
        (Some(orders), _) => Orders::Given(orders),
        (None, Some(order)) => order.into(),
        (None, None) if has_statistics => Orders::Fixed(Order::Zigzag),
        (None, None) => Orders::Fixed(Order::None),
    };
    Ok(Settings {
        targets: plan.tensors.iter().filter(|t| t.is_tcq4()).map(|t| t.name.clone()).collect(),
        scales,
        orders,
        apply: method.perm_apply.into(),
        activations: method.activations,
        codec,
    })
}

/// Checks an output that is written besides `main`: it must be another file, and none of the inputs.
///
/// # Errors
/// What [`check_target`] refuses, and one file for both.
pub(super) fn check_side_output(
    side: &Path,
    main: &Path,
    force: bool,
    source: &Source,
    inputs: &[PathBuf],
) -> Result<()> {
    let inputs: Vec<&Path> = source.shards().chain(inputs.iter().map(PathBuf::as_path)).collect();
    check_target(side, force, &inputs)?;
    let folder =
        |path: &Path| path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf();
    let same_name = side.file_name() == main.file_name() && same_file(&folder(side), &folder(main));
    if same_name || same_file(side, main) {
        return Err(Error::Usage {
            message: format!("{} and {} are one file, for two outputs", main.display(), side.display()),
            hint: Some("choose another name for one of them".into()),
        });
    }
    Ok(())
}

/// The settings as they go into the file (`tcq4.recipe`), so that a run can be repeated.
pub(super) fn recipe(settings: &Settings, codes: &Codes<'_>) -> String {
    let scales = match settings.scales {
        Scales::None => json!("none"),
        Scales::ClosedForm => json!("closed-form"),
        Scales::Awq { salience: Salience::MeanAbs, steps } => {
            json!({ "awq": { "salience": "l1", "alpha_grid": steps } })
        }
        Scales::Awq { salience: Salience::MeanSq, steps } => {
            json!({ "awq": { "salience": "l2", "alpha_grid": steps } })
        }
    };
    let order = match &settings.orders {
        Orders::Fixed(order) => order.name(),
        Orders::Auto => "auto",
        Orders::Given(_) => "given",
    };
    let apply = match settings.apply {
        Apply::Runtime => "runtime",
        Apply::Fold => "fold",
    };
    let rounding = match codes {
        Codes::Nearest => json!("nearest"),
        Codes::Greedy(_) => json!("greedy"),
        Codes::Gptq(Compensation { rounding, damp, act_order, sequential, .. }) => json!({
            "gptq": { "damp": damp, "act_order": act_order, "feedback": rounding.feedback, "refine": rounding.descents, "refit": rounding.refit },
            "layer_batch": sequential.as_ref().map(|sequential| sequential.blocks),
        }),
    };
    json!({
        "tcq4": env!("CARGO_PKG_VERSION"),
        "scales": scales,
        "order": order,
        "perm_apply": apply,
        "activations": settings.activations.name(),
        "encoder": settings.codec.encoder().to_string(),
        "rounding": rounding,
    })
    .to_string()
}

/// Where the output goes and how it is divided.
pub(super) fn target(output: &Path, out: &OutputArgs, source: &Source) -> Target {
    let sharding = match out.split_max_size {
        Some(size) => Sharding::MaxBytes(size.0),
        None if out.keep_split => Sharding::Counts(source.shard_sizes()),
        None => Sharding::Single,
    };
    Target { path: output.to_path_buf(), force: out.force, sharding }
}
