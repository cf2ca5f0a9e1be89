//! Compares the gradients of views with those of tensors, and both with finite differences.

use candle_core::Device;
use cellql_kernels::Dtype;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::tests::{GENES, length, small};
use super::{Loss, ViewBuffers, ViewNetwork};
use crate::device::OnDevices;
use crate::flat_weights::FlatWeights;
use crate::heads::add_heads;
use crate::learner::Learner;
use crate::objectives::Objectives;
use crate::read_depth::ReadDepthAware;
use crate::views::CellViews;

const COMPONENTS: usize = 5;

fn objectives(components: f64, contrast: f64) -> Objectives {
    let target = Some("linear".to_owned());
    Objectives { components, contrast, target, contrast_dim: 7, view_genes: (20, 160), ..Objectives::default() }
}

fn parameters(objectives: &Objectives) -> FlatWeights {
    let mut weights = small(1);
    add_heads(&mut weights, objectives, COMPONENTS, 5).unwrap();
    FlatWeights::of(&weights).unwrap()
}

fn batch(objectives: &Objectives, cells: usize) -> Vec<CellViews> {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let task = ReadDepthAware { downsampled_from: 10.0, ..ReadDepthAware::default() };
    let mut cell = |c: usize| {
        let expressed = (0..GENES as u32).filter(|g| (g * 31 + 7 * c as u32).is_multiple_of(2 + c as u32 % 5));
        let counts: Vec<(u32, f32)> = expressed.map(|g| (g, (1 + (g + c as u32) % 9) as f32)).collect();
        let target: Vec<f32> = (0..COMPONENTS).map(|_| rng.random_range(-3.0..3.0)).collect();
        objectives.views_of(&task, &counts, &target, GENES, &mut rng).unwrap().unwrap()
    };
    (0..cells).map(&mut cell).collect()
}

fn by_hand(parameters: &FlatWeights, objectives: &Objectives, batch: &[CellViews], dtype: Dtype) -> (Loss, Vec<f32>) {
    let mut flat = vec![0.0; parameters.values.len()];
    let network = ViewNetwork::pack(parameters, dtype, objectives, COMPONENTS).unwrap();
    (network.learn(batch, &mut flat, &ViewBuffers::default()), flat)
}

#[test]
fn gradients_of_views_are_those_of_tensors() {
    for objectives in [objectives(0.7, 0.0), objectives(0.0, 0.3), objectives(1.2, 0.4)] {
        let (parameters, batch) = (parameters(&objectives), batch(&objectives, 6));
        let (loss, flat) = by_hand(&parameters, &objectives, &batch, Dtype::F32);
        for learner in [
            OnDevices::new(vec![Device::Cpu], Dtype::F32).unwrap(),
            OnDevices::new(vec![Device::Cpu], Dtype::F32).unwrap().with_fused(),
        ] {
            let mut exact = vec![0.0; flat.len()];
            let of_tensors = learner.learn_views(&parameters, &batch, &objectives, &mut exact).unwrap();
            for (ours, theirs) in [(loss.components, of_tensors.components), (loss.contrast, of_tensors.contrast)] {
                assert!((ours - theirs).abs() <= 1e-4 * theirs, "{loss:?} {of_tensors:?}");
            }
            assert_eq!(learner.loss_of_views(&parameters, &batch, &objectives).unwrap(), of_tensors);
            let mut compared = 0;
            for slot in parameters.slots() {
                let (ours, theirs) = (&flat[slot.at.clone()], &exact[slot.at.clone()]);
                let apart: Vec<f32> = ours.iter().zip(theirs).map(|(a, b)| a - b).collect();
                let off = length(&apart) / length(theirs).max(1e-12);
                // Nothing depends on the keys' bias in exact arithmetic.
                let tolerance = if length(theirs) < 1e-3 * length(&flat) { 0.02 } else { 1e-3 };
                assert!(length(&apart) < 1e-7 || off < tolerance, "{}: off by {off:.1e}", slot.name);
                compared += usize::from(length(theirs) > 1e-6);
            }
            assert!(compared > 30, "most tensors of the encoder have a gradient: {compared}");
            let used = |name: &str| parameters.at(name, &[7, 80]).map(|at| length(&flat[at]) > 0.0).unwrap_or(false);
            assert_eq!(used("heads.contrast.weight"), objectives.contrast > 0.0);
        }
    }
}

#[test]
fn gradients_of_views_agree_with_finite_differences() {
    let objectives = objectives(1.0, 0.5);
    let (parameters, batch) = (parameters(&objectives), batch(&objectives, 5));
    let (_, flat) = by_hand(&parameters, &objectives, &batch, Dtype::F32);
    let direction: Vec<f32> = flat.iter().map(|g| (f64::from(*g) / length(&flat)) as f32).collect();
    let at = |step: f32| {
        let mut moved = parameters.clone();
        moved.values.iter_mut().zip(&direction).for_each(|(v, d)| *v += step * d);
        let network = ViewNetwork::pack(&moved, Dtype::F32, &objectives, COMPONENTS).unwrap();
        let loss = network.loss(&batch);
        loss.components + 0.5 * loss.contrast
    };
    let difference = (at(1e-3) - at(-1e-3)) / 2e-3;
    assert!((difference / length(&flat) - 1.0).abs() < 0.01, "{difference} against {}", length(&flat));
}

#[test]
fn views_of_one_batch_give_one_gradient_whatever_the_threads_and_what_is_stored() {
    let objectives = objectives(1.0, 0.5);
    let (parameters, batch) = (parameters(&objectives), batch(&objectives, 6));
    let (loss, flat) = by_hand(&parameters, &objectives, &batch, Dtype::F32);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let buffers = ViewBuffers::default();
    let learn = |recomputes: bool| {
        let mut flat = vec![0.0; flat.len()];
        let network = ViewNetwork::pack(&parameters, Dtype::F32, &objectives, COMPONENTS).unwrap();
        (one.install(|| network.recomputing(recomputes).learn(&batch, &mut flat, &buffers)), flat)
    };
    let alone = learn(false);
    assert_eq!(learn(true), alone, "bit for bit");
    assert_eq!(alone.0, loss);
    let apart: Vec<f32> = flat.iter().zip(&alone.1).map(|(a, b)| a - b).collect();
    assert!(length(&apart) < 1e-5 * length(&flat));
    let (_, rounded) = by_hand(&parameters, &objectives, &batch, Dtype::Bf16);
    let apart: Vec<f32> = flat.iter().zip(&rounded).map(|(a, b)| a - b).collect();
    assert!(length(&apart) < 0.1 * length(&flat) && rounded != flat);
}
