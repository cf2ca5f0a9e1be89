//! Compares the gradients with those of tensors, and both with finite differences.

use candle_core::{Device, Tensor};
use cellql_kernels::Dtype;
use cellql_schemas::vocabulary::Vocabulary;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{BufferPool, Loss, Network};
use crate::device::OnDevices;
use crate::flat_weights::FlatWeights;
use crate::learner::Learner;
use crate::read_depth::{Example, ReadDepthAware};
use cellql_model::{Config, DecoderConfig, EncoderConfig, Size, Weights, initialise};

pub(super) const GENES: usize = 300;

/// Two decoder layers, no size a multiple of what kernels like, and weights as training would leave them: none is 0 or
/// 1.
pub(super) fn small(depth: usize) -> Weights {
    let vocabulary = Vocabulary::new((0..GENES).map(|i| format!("gene{i}")).collect()).unwrap();
    let mut config = Config::of_size(Size::M3, GENES);
    config.bin_num = 11;
    config.encoder = EncoderConfig { hidden_dim: 20, depth: 2, heads: 4 };
    config.decoder = DecoderConfig { hidden_dim: 18, depth, heads: 3, dim_head: 7 };
    let mut weights = initialise(&config, vocabulary, 3).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    // By name: the order of a map differs from run to run, and the weights with it.
    let mut tensors: Vec<_> = weights.tensors.iter_mut().collect();
    tensors.sort_by_key(|(name, _)| name.as_str());
    for (name, tensor) in tensors {
        if !name.ends_with("projection_matrix") {
            let shape = tensor.dims().to_vec();
            let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            let values: Vec<f32> = values.into_iter().map(|v| v + rng.random_range(-0.1..0.1)).collect();
            *tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        }
    }
    weights
}

fn examples(cells: usize) -> Vec<Example> {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let task = ReadDepthAware { masked_zeros: 0.1, downsampled_from: 10.0, ..ReadDepthAware::default() };
    let cell = |c: usize| -> Vec<(u32, f32)> {
        let expressed = (0..GENES as u32).filter(|g| (g * 31 + 7 * c as u32).is_multiple_of(2 + c as u32 % 5));
        expressed.map(|g| (g, (1 + (g + c as u32) % 9) as f32)).collect()
    };
    (0..cells).map(|c| task.example(&cell(c), GENES, None, &mut rng).unwrap().unwrap()).collect()
}

/// The loss and its gradients by candle's automatic differentiation of tensors.
fn by_graph(parameters: &FlatWeights, examples: &[Example], learner: &OnDevices) -> (Loss, Vec<f32>) {
    let mut flat = vec![0.0; parameters.values.len()];
    (learner.learn(parameters, examples, &mut flat).unwrap(), flat)
}

/// Plain tensors, and the functions of a device: on the CPU, and on a GPU where there is one.
fn learners() -> Vec<(&'static str, OnDevices)> {
    // Two devices, so that shares of a batch are added too.
    let plain = || OnDevices::new(vec![Device::Cpu; 2], Dtype::F32).unwrap();
    let mut all = vec![("plain", plain()), ("fused", plain().with_fused())];
    match Device::new_cuda_with_stream(0) {
        Ok(gpu) => all.push(("on a GPU", OnDevices::new(vec![gpu], Dtype::F32).unwrap())),
        Err(_) => println!("skipped on a GPU: there is none"),
    }
    all
}

fn by_hand(weights: &Weights, dtype: Dtype, examples: &[Example]) -> (Loss, FlatWeights, Vec<f32>) {
    let parameters = FlatWeights::of(weights).unwrap();
    let mut flat = vec![0.0; parameters.values.len()];
    let loss = Network::pack(&parameters, dtype).unwrap().learn(examples, &mut flat, &BufferPool::default());
    (loss, parameters, flat)
}

pub(super) fn length(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn gradients_are_those_of_tensors_plain_and_fused() {
    for (what, learner) in learners() {
        for depth in [1, 2, 3] {
            gradients_are_those_of(what, &learner, depth);
        }
    }
}

fn gradients_are_those_of(what: &str, learner: &OnDevices, depth: usize) {
    let (weights, cells) = (small(depth), examples(5));
    let (loss, parameters, flat) = by_hand(&weights, Dtype::F32, &cells);
    let (exact_loss, exact) = by_graph(&parameters, &cells, learner);
    assert!((loss.squares - exact_loss.squares).abs() < 1e-4 * loss.squares, "{loss:?} {exact_loss:?}");
    assert_eq!(loss.masked, cells.iter().map(|e| e.masked.len() as u64).sum::<u64>());
    for slot in parameters.slots() {
        let (ours, theirs) = (&flat[slot.at.clone()], &exact[slot.at.clone()]);
        let apart: Vec<f32> = ours.iter().zip(theirs).map(|(a, b)| a - b).collect();
        let name = &slot.name;
        if name == "token_emb.emb_pad.weight" {
            assert!(length(ours) == 0.0 && length(theirs) == 0.0, "padding is never seen");
            continue;
        }
        assert!(length(theirs) > 0.0, "{name}: every weight that is used has a gradient");
        let off = length(&apart) / length(theirs);
        // Nothing depends on the keys' bias in exact arithmetic: softmax and its approximation cancel it.
        let tolerance = if length(theirs) < 1e-3 * length(&flat) { 0.02 } else { 1e-3 };
        assert!(off < tolerance, "{name}, depth {depth}, {what}: off by {off:.1e}, {} long", length(theirs));
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let (weights, cells) = (small(2), examples(3));
    let (_, parameters, flat) = by_hand(&weights, Dtype::F32, &cells);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for slot in parameters.slots().iter().filter(|slot| slot.name != "token_emb.emb_pad.weight") {
        let gradient = &flat[slot.at.clone()];
        // Along its own gradient mostly, where a difference stands out from rounding.
        let own = length(gradient).max(1e-12);
        let direction: Vec<f32> = gradient
            .iter()
            .map(|g| (f64::from(*g) / own) as f32 + rng.random_range(-0.3..0.3) / (gradient.len() as f32).sqrt())
            .collect();
        let along: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let at = |step: f32| {
            let mut moved = parameters.clone();
            moved.values[slot.at.clone()].iter_mut().zip(&direction).for_each(|(v, d)| *v += step * d);
            Network::pack(&moved, Dtype::F32).unwrap().loss(&cells).squares
        };
        let step = 2e-3f32;
        let difference = (at(step) - at(-step)) / (2.0 * f64::from(step));
        // Gradients take the largest key of a cell for a constant, as the authors' do; a difference feels it move, by
        // 1e-4 of every feature.
        let tolerance = if slot.name.contains("to_k") { 0.06 } else { 0.02 };
        let allowed = tolerance * along.abs() + 0.05;
        assert!((difference - along).abs() < allowed, "{}: {difference} against {along}", slot.name);
    }
}

#[test]
fn bf16_gives_nearly_the_same_gradient() {
    let (weights, cells) = (small(2), examples(4));
    let (exact_loss, _, exact) = by_hand(&weights, Dtype::F32, &cells);
    let (loss, _, flat) = by_hand(&weights, Dtype::Bf16, &cells);
    assert!((loss.mean() / exact_loss.mean() - 1.0).abs() < 0.02);
    let apart: Vec<f32> = flat.iter().zip(&exact).map(|(a, b)| a - b).collect();
    assert!(length(&apart) < 0.05 * length(&exact), "{}", length(&apart) / length(&exact));
    assert_ne!(flat, exact);
}

#[test]
fn a_batch_is_the_sum_of_its_cells_and_of_any_number_of_threads() {
    let (weights, cells) = (small(2), examples(5));
    let (whole_loss, _, whole) = by_hand(&weights, Dtype::F32, &cells);
    let mut sum = vec![0.0; whole.len()];
    let mut loss = Loss::default();
    for cell in cells.chunks(2) {
        let (of_some, _, flat) = by_hand(&weights, Dtype::F32, cell);
        loss = loss.and(of_some);
        sum.iter_mut().zip(&flat).for_each(|(s, f)| *s += f);
    }
    assert!((loss.squares - whole_loss.squares).abs() < 1e-5 * loss.squares);
    let apart: Vec<f32> = whole.iter().zip(&sum).map(|(a, b)| a - b).collect();
    assert!(length(&apart) < 1e-4 * length(&whole));
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let (first, second) =
        one.install(|| (by_hand(&weights, Dtype::F32, &cells).2, by_hand(&weights, Dtype::F32, &cells).2));
    assert_eq!(first, second, "bitwise on one thread");
}

#[test]
fn what_is_computed_again_is_what_was_kept() {
    for (depth, dtype) in [(1, Dtype::F32), (3, Dtype::F32), (3, Dtype::Bf16)] {
        let (weights, cells) = (small(depth), examples(3));
        let (parameters, buffers) = (FlatWeights::of(&weights).unwrap(), BufferPool::default());
        let learn = |recomputes: bool| {
            let mut flat = vec![0.0; parameters.values.len()];
            let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            let network = Network::pack(&parameters, dtype).unwrap().recomputing(recomputes);
            (one.install(|| network.learn(&cells, &mut flat, &buffers)), flat)
        };
        let first = learn(true);
        assert_eq!(learn(false), first);
        assert_eq!(learn(true), first, "what a step left behind changes nothing");
    }
}

#[test]
fn the_loss_alone_is_the_loss_beside_gradients() {
    let (weights, cells) = (small(2), examples(4));
    let (beside, parameters, _) = by_hand(&weights, Dtype::F32, &cells);
    let alone = Network::pack(&parameters, Dtype::F32).unwrap().loss(&cells);
    assert!((alone.squares - beside.squares).abs() < 1e-6 * alone.squares && alone.masked == beside.masked);
}
