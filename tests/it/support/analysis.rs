//! Analyses made up from a seed, for pages of any size: plausible in shape, not measured.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tcq4::analysis::record::*;

/// What an analysis is about.
#[derive(Clone, Copy)]
pub struct Shape {
    pub layers: u32,
    pub experts: u32,
    /// Layers of which groups, tensors and gates are shown in detail.
    pub detailed: u32,
}

/// A tensor name as an attacker would choose it.
pub const HOSTILE: &str = "blk.0.<script>alert('x')</script>\"><img src=x onerror=alert(1)>";

/// The inputs of a layer: kind, tensors.
const GROUPS: [(&str, &[&str]); 4] = [
    ("attn_qkv", &["attn_q", "attn_k", "attn_v"]),
    ("attn_output", &["attn_output"]),
    ("ffn_gate_up", &["ffn_gate", "ffn_up"]),
    ("ffn_down", &["ffn_down"]),
];

const COLUMNS: u32 = 576;

/// Numbers of a named stream.
struct Dice(ChaCha8Rng);

impl Dice {
    fn unit(&mut self) -> f32 {
        self.0.random::<f32>()
    }

    /// About `middle`, within a factor of `spread` either way.
    fn about(&mut self, middle: f32, spread: f32) -> f32 {
        middle * spread.powf(2.0 * self.unit() - 1.0)
    }

    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}

fn histogram(low: f32, high: f32, bins: usize, middle: f32, width: f32) -> Histogram {
    let at = |bin: usize| low + (high - low) * (bin as f32 + 0.5) / bins as f32;
    let count = |bin| (10_000.0 * (-((at(bin) - middle) / width).powi(2) / 2.0).exp()) as u64;
    Histogram { low, high, counts: (0..bins).map(count).collect(), below: 0, above: 3 }
}

/// Makes up an analysis.
pub fn analysis(shape: Shape) -> Analysis {
    let mut dice = Dice(ChaCha8Rng::seed_from_u64(7));
    let mut all = Analysis { version: VERSION, ..Analysis::default() };
    all.model = ModelFacts {
        path: "/models/made-up-f16.gguf".into(),
        name: "Made-up 1B".into(),
        architecture: if shape.experts > 0 { "qwen3moe".into() } else { "llama".into() },
        layers: shape.layers,
        experts: shape.experts,
        weights: 1_000_000 * u64::from(shape.layers),
        source_bytes: 2_000_000 * u64::from(shape.layers),
        bytes: 600_000 * u64::from(shape.layers),
        converted: None,
    };
    all.setup = setup(shape);
    for layer in 0..shape.layers {
        let detailed = layer < shape.detailed;
        for (kind, tensors) in GROUPS {
            group(&mut all, &mut dice, layer, kind, tensors, detailed);
        }
        gate(&mut all, &mut dice, layer, detailed);
        if shape.experts > 0 {
            all.experts.push(experts(&mut dice, layer, shape.experts));
        }
    }
    all.tensors.push(TensorRow {
        name: "output.weight".into(),
        kind: "output".into(),
        rows: 49_152,
        columns: 576,
        matrices: 1,
        weights: 28_311_552,
        from: "F16".into(),
        to: "Q6_K".into(),
        bits: 6.5625,
        reason: "the output head".into(),
        ..TensorRow::default()
    });
    all.rounding_histogram = Some(histogram(-1.0, 1.0, 64, 0.0, 0.3));
    all.similarity = GROUPS.iter().map(|(kind, _)| similarity(&mut dice, kind, shape.layers)).collect();
    all
}

fn setup(shape: Shape) -> Setup {
    Setup {
        statistics: Some("stats.gguf".into()),
        datasets: vec!["wikitext2".into(), "code.jsonl".into()],
        chunks: 128,
        chunk_tokens: 512,
        rows_held_out: true,
        complete: true,
        activations: "int4".into(),
        scales: "closed-form".into(),
        order: "zigzag".into(),
        encoder: "default".into(),
        output_rows: 64,
        sample_rows: 64,
        sample_experts: 4,
        tau: -3.0,
        min_expert_tokens: (shape.experts > 0).then_some(100),
        min_expert_share: None,
    }
}

fn group(all: &mut Analysis, dice: &mut Dice, layer: u32, kind: &str, tensors: &[&str], detailed: bool) {
    let key = format!("blk.{layer}.{kind}");
    let names: Vec<String> = tensors.iter().map(|tensor| format!("blk.{layer}.{tensor}.weight")).collect();
    let share = 0.02 + 0.3 * dice.unit().powi(3);
    let shares = Shares {
        top_1: share / 4.0,
        top_10: share,
        top_100: (share * 3.0).min(0.9),
        top_1_percent: share * 0.8,
        top_10_percent: (share * 2.0).min(0.8),
        top_50_percent: 0.9,
    };
    all.groups.push(GroupRow {
        key: key.clone(),
        layer: Some(layer),
        kind: kind.into(),
        tensors: names.clone(),
        columns: COLUMNS,
        rows_seen: 65_536,
        sample_rows: 64,
        grounds: "statistics".into(),
        scale_range: (kind != "attn_output").then(|| [dice.about(0.3, 1.5), dice.about(4.0, 1.5)]),
        unscaled: (kind == "attn_output").then(|| "grouped heads share their values".into()),
        order: "zigzag".into(),
        applied: Some("runtime".into()),
        unordered: None,
        importance: Some(Importance {
            mean_abs: Some(shares),
            mean_sq: shares,
            spearman_abs_sq: Some(0.99 - 0.1 * dice.unit()),
            spearman_max_sq: Some(0.9 - 0.2 * dice.unit()),
            spearman_mean_sq: Some(0.5 * dice.unit()),
            signed_mean: Some(0.001 * dice.normal()),
            offset_share: Some(0.1 * dice.unit()),
            rms: dice.about(0.4, 3.0),
            peak_to_median: Some(dice.about(40.0, 5.0)),
            zero_channels: 0,
        }),
        steps: Step::ALL.into_iter().map(|step| step_row(dice, step)).collect(),
        alpha: Some(AlphaRow {
            best_alpha: (20.0 * dice.unit()).round() / 20.0,
            best_error: dice.about(0.010, 1.3),
            error_unscaled: dice.about(0.014, 1.3),
            error_closed_form: dice.about(0.0105, 1.3),
        }),
        similarity_previous: (layer > 0).then(|| 0.8 + 0.2 * dice.unit()),
    });
    for name in &names {
        let tensor = tensor(dice, layer, name, &key);
        all.tensors.push(tensor);
    }
    if detailed {
        all.group_details.push(group_detail(dice, &key));
        all.tensor_details.extend(names.iter().map(|name| tensor_detail(dice, name)));
    }
}

fn step_row(dice: &mut Dice, step: Step) -> StepRow {
    let base = match step {
        Step::Plain => 4.0,
        Step::Scaled => 3.0,
        Step::Ordered => 2.5,
        Step::Rotated => 1.0,
        Step::RotatedPlain => 1.3,
    };
    let spread = |middle: f32| Spread {
        mean: middle,
        p05: middle * 0.6,
        p50: middle * 0.95,
        p95: middle * 1.6,
        max: middle * 3.0,
    };
    StepRow {
        step,
        block_max_256: spread(dice.about(3.0 * base, 1.2)),
        block_max_32: spread(dice.about(2.0 * base, 1.2)),
        crest_256: dice.about(3.0 * base, 1.2),
        crest_32: dice.about(2.2 * base, 1.1),
        victims_256: (0.1 * base * dice.about(1.0, 1.3)).min(1.0),
        victims_32: (0.06 * base * dice.about(1.0, 1.3)).min(1.0),
        error_int4: dice.about(0.008 * base, 1.2),
        error_int4_group32: dice.about(0.005 * base, 1.2),
        error_int8: dice.about(0.000_03 * base, 1.2),
    }
}

fn tensor(dice: &mut Dice, layer: u32, name: &str, group: &str) -> TensorRow {
    let kind = name.split('.').nth(2).unwrap_or(name).to_owned();
    let substituted = kind == "attn_k" && layer % 9 == 4;
    let weights_only = dice.about(if kind == "ffn_down" { 0.012 } else { 0.006 }, 1.6);
    let error = |more: f32| weights_only * (1.0 + more);
    let measured = !substituted;
    let magnitude = Magnitude { mean: 0.25, std: 0.14, max: 0.5, p90: 0.45, p99: 0.495 };
    let errors =
        Errors { mean: 1e-5 * dice.normal(), std: 0.004, mean_abs: dice.about(0.003, 1.3), min: -0.03, max: 0.03 };
    let test = |dice: &mut Dice| Test { statistic: Some(dice.normal()), p: Some(dice.unit()) };
    TensorRow {
        name: name.into(),
        layer: Some(layer),
        kind,
        group: Some(group.into()),
        rows: 576,
        columns: COLUMNS.into(),
        matrices: 1,
        weights: 576 * 576,
        from: "F16".into(),
        to: if substituted { "Q8_0".into() } else { "TCQ4_K32".into() },
        bits: if substituted { 8.5 } else { 4.625 },
        reason: if substituted { "576 columns are no multiple of 256".into() } else { "a linear layer".into() },
        substituted,
        measured_on: Some(MeasuredOn { weights: "encoded".into(), output_rows: 64, matrices: 1, sample_rows: 64 }),
        error_rel: measured.then(|| dice.about(0.006, 1.2)),
        output: measured.then(|| OutputErrors {
            weights_only,
            int8: error(0.01),
            int4: error(1.3),
            int4_group32: error(0.8),
            assumed: error(1.3),
        }),
        rounding: measured.then(|| Rounding {
            weights: 36_864,
            rounded_up: 18_300,
            rounded_down: 18_200,
            exact: 364,
            no_step: 0,
            clipped: 120,
            in_steps: magnitude,
            in_weights: Magnitude { mean: 0.003, std: 0.002, max: 0.02, p90: 0.006, p99: 0.009 },
            signed_mean: 0.002 * dice.normal(),
        }),
        split: measured.then(|| Split {
            important_channels: COLUMNS / 2,
            output: Some(SplitOutput {
                mse_important: dice.about(0.004, 2.0),
                mse_other: dice.about(0.003, 2.0),
                mse_total: dice.about(0.007, 2.0),
                mean_important: 1e-4 * dice.normal(),
                mean_other: 1e-4 * dice.normal(),
                mean_total: 1e-4 * dice.normal(),
                ratio: Some(dice.about(1.4, 2.0)),
            }),
            important: errors,
            other: errors,
            signed_t: test(dice),
            abs_ks: test(dice),
            channel_t: test(dice),
            channel_ks: test(dice),
            channel_ratio: Some(dice.about(1.5, 2.0)),
        }),
    }
}

fn group_detail(dice: &mut Dice, key: &str) -> GroupDetail {
    let mean_abs: Vec<f32> = (0..COLUMNS).map(|_| dice.normal().mul_add(0.8, -1.0).exp()).collect();
    let mean_sq: Vec<f32> = mean_abs.iter().map(|v| 1.6 * v * v).collect();
    let abs_max: Vec<f32> = mean_abs.iter().map(|v| dice.about(6.0 * v, 1.5)).collect();
    let sorted = |values: &[f32]| {
        let mut values = values.to_vec();
        values.sort_by(|a, b| b.total_cmp(a));
        values
    };
    let step = |step: Step, at: f32| BlockMaxima {
        step,
        of_256: histogram(0.0, 16.0, 64, at, 0.3 * at),
        of_32: histogram(0.0, 16.0, 64, 0.7 * at, 0.35 * at),
    };
    let point = |i: u8| {
        let alpha = f32::from(i) / 20.0;
        let error = 0.01 + 0.01 * (alpha - 0.4).powi(2);
        AlphaPoint { alpha, error, error_weights_only: 0.6 * error }
    };
    GroupDetail {
        key: key.into(),
        sorted: Some(SortedCurves {
            rank: (0..COLUMNS).collect(),
            mean_abs: sorted(&mean_abs),
            mean_sq: sorted(&mean_sq),
            abs_max: sorted(&abs_max),
        }),
        channels: Some(ChannelCurves {
            bucket: 1,
            channel: (0..COLUMNS).collect(),
            mean: mean_abs.iter().map(|v| 0.1 * v).collect(),
            weight_sq: mean_abs.iter().map(|v| 1.0 / v).collect(),
            scale: mean_abs.iter().map(|v| dice.about(v.powf(-0.5), 1.1)).collect(),
            place: (0..COLUMNS).map(|i| (i * 7) % COLUMNS).collect(),
            mean_abs,
            mean_sq,
            abs_max,
        }),
        block_maxima: Step::ALL.into_iter().zip([8.0, 6.5, 5.5, 3.0, 3.6]).map(|(s, at)| step(s, at)).collect(),
        alpha_curve: (0..=20).map(point).collect(),
    }
}

fn tensor_detail(dice: &mut Dice, name: &str) -> TensorDetail {
    let mean_sq: Vec<f32> = (0..COLUMNS).map(|_| (2.0 * dice.normal() - 2.0).exp()).collect();
    TensorDetail {
        name: name.into(),
        rounding: histogram(-1.0, 1.0, 64, 0.0, 0.25),
        bucket: 1,
        channel_mse: mean_sq.iter().map(|v| dice.about(1e-5 * v.powf(0.7), 2.0)).collect(),
        delta_mean: mean_sq.iter().map(|_| 1e-4 * dice.normal()).collect(),
        delta_mean_abs: mean_sq.iter().map(|v| dice.about(0.003 * v.powf(-0.05), 1.2)).collect(),
        mean_sq,
    }
}

fn gate(all: &mut Analysis, dice: &mut Dice, layer: u32, detailed: bool) {
    let tensor = format!("blk.{layer}.ffn_gate.weight");
    let dead = (20.0 * dice.unit()) as u32;
    all.gates.push(GateRow {
        tensor: tensor.clone(),
        layer,
        function: "silu".into(),
        sample_rows: 64,
        channels: 1536,
        matrices: 1,
        pre: Moments { mean: -0.9 + 0.2 * dice.normal(), std: dice.about(1.2, 1.3), min: -14.0, max: 11.0 },
        post: Some(Moments { mean: 0.1, std: 0.6, min: -0.28, max: 11.0 }),
        negative_share: 0.6 + 0.3 * dice.unit(),
        below_tau_share: 0.05 * dice.unit(),
        negative_channels: 1100,
        volatile_channels: 40,
        dead_channels: dead,
        risky_channels: dead / 2,
        high_weight: 0.04,
        critical_channels: dead / 5,
        suppression: Some(0.2 + 0.1 * dice.unit()),
        spearman_awq_praq: Some(dice.unit()),
    });
    if detailed {
        all.gate_details.push(gate_detail(dice, &tensor));
    }
}

fn gate_detail(dice: &mut Dice, tensor: &str) -> GateDetail {
    let count = 400;
    let mut column =
        |middle: f32, width: f32| -> Vec<f32> { (0..count).map(|_| middle + width * dice.normal()).collect() };
    let channels = GateChannels {
        total: 1536,
        matrix: Vec::new(),
        channel: (0..count).collect(),
        mean: column(-1.0, 0.9),
        std: column(1.2, 0.15),
        min: column(-6.0, 0.5),
        max: column(4.0, 0.5),
        p05: column(-3.0, 0.3),
        p25: column(-2.0, 0.2),
        p50: column(-1.0, 0.2),
        p75: column(0.0, 0.2),
        p95: column(1.0, 0.3),
        negative_ratio: column(0.7, 0.02),
        dead_ratio: column(0.1, 0.01),
        weight_magnitude: column(0.03, 0.002),
        awq_importance: column(1.2, 0.1),
        praq_importance: column(0.9, 0.1),
        awq_normalized: column(0.5, 0.08),
        praq_normalized: column(0.5, 0.08),
        awq_rank: column(200.0, 20.0),
        praq_rank: column(200.0, 20.0),
        flags: (0..count).map(|i| [0u8, 0, 1, 3, 7][i as usize % 5]).collect(),
    };
    let row = |channel| SaliencyRow {
        matrix: 0,
        channel,
        saliency: 2.0,
        gradient: (0..256u32).map(|rank| (-(f64::from(rank) / 40.0)).exp() as f32 / (1.0 + channel as f32)).collect(),
        knee: 30,
        weight_range: [-0.2, 0.3],
    };
    GateDetail {
        tensor: tensor.into(),
        pre: histogram(-8.0, 8.0, 100, -1.0, 1.3),
        post: Some(histogram(-0.3, 8.0, 100, 0.0, 0.4)),
        channels,
        saliency: (0..10).map(row).collect(),
    }
}

fn experts(dice: &mut Dice, layer: u32, count: u32) -> ExpertRow {
    let tokens: Vec<u64> = (0..count).map(|_| (4000.0 * dice.unit().powi(2)) as u64).collect();
    let total: u64 = tokens.iter().sum();
    let share = |tokens: u64| tokens as f32 * count as f32 / total as f32;
    ExpertRow {
        layer,
        tensor: format!("blk.{layer}.ffn_gate_exps.weight"),
        starved: (0..count).filter(|expert| tokens[*expert as usize] < 100).collect(),
        min_share: tokens.iter().min().map(|t| share(*t)),
        max_share: tokens.iter().max().map(|t| share(*t)),
        balance: Some(0.95),
        tokens,
        total,
    }
}

fn similarity(dice: &mut Dice, kind: &str, layers: u32) -> Similarity {
    let shown = (layers as usize).min(MATRIX);
    let spread: Vec<u32> =
        (0..shown).map(|i| (i * (layers as usize - 1) / shown.max(2).saturating_sub(1)) as u32).collect();
    let mut cosine = vec![1f32; shown * shown];
    for row in 0..shown {
        for column in 0..row {
            let value = (1.0 - 0.02 * (row - column) as f32 - 0.05 * dice.unit()).max(0.1);
            (cosine[row * shown + column], cosine[column * shown + row]) = (value, value);
        }
    }
    Similarity { kind: kind.into(), layers: spread, measured_layers: layers, cosine }
}
