//! Kernels beside tensors, and cells alone beside cells in batches.

use crate::batch::Packed;
use crate::config::{Config, DecoderConfig, EncoderConfig, Size};
use crate::model::Model;
use crate::xtrimogene::{DecoderInput, XTrimoGene};
use crate::{NotEmbeddable, Sample, Tokens, Weights, encode, initialise};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use cellql_schemas::expr::Profile;
use cellql_schemas::nomenclature::Nomenclature;
use cellql_schemas::recipe::{Dtype, Recipe};
use cellql_schemas::vocabulary::{Placement, Vocabulary};

/// A small model with weights at random, and two cells as tokens.
pub(crate) fn small() -> (Weights, Vec<Tokens>) {
    let vocabulary = Vocabulary::new((0..90).map(|i| format!("gene{i}")).collect()).unwrap();
    let mut config = Config::of_size(Size::M3, 90);
    config.encoder = EncoderConfig { hidden_dim: 40, depth: 2, heads: 5 };
    config.decoder = DecoderConfig { hidden_dim: 36, depth: 2, heads: 3, dim_head: 10 };
    let weights = initialise(&config, vocabulary, 3).unwrap();
    let cell = |step: u32, depth: f32| {
        let mut positions: Vec<u32> = (0..90).step_by(step as usize).collect();
        let mut values: Vec<f32> = positions.iter().map(|p| (p * 7 % 5 + 1) as f32 * 0.7).collect();
        positions.extend([90, 91]);
        values.extend([4.0, depth]);
        Tokens { positions, values }
    };
    (weights, vec![cell(3, 3.1), cell(7, 2.6)])
}

pub(crate) fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn kernels_and_plain_tensors_agree() {
    let (weights, cells) = small();
    let model = Model::load("small", encode(&weights).unwrap().0).unwrap();
    let vb = VarBuilder::from_tensors(weights.tensors.clone(), DType::F32, &Device::Cpu);
    let tensors = XTrimoGene::load(vb, &weights.config).unwrap();
    let packed = Packed::new(cells.iter());
    let plain = tensors.encode(&packed).unwrap();
    let transformer = model.transformer("").unwrap();
    let fast = transformer.encoder(Dtype::F32).unwrap().forward(&transformer.embedding, &packed);
    for (i, row) in plain.to_vec2::<f32>().unwrap().iter().enumerate() {
        assert!(worst(fast.row(i), row) < 1e-5);
    }
    let decoder = transformer.decoder(Dtype::F32).unwrap();
    for (slot, cell) in cells.iter().enumerate() {
        let range = packed.cell(slot);
        let encoded = plain.narrow(0, range.start, range.len()).unwrap();
        let mut values = vec![0f32; 92];
        cell.positions.iter().zip(&cell.values).for_each(|(p, v)| values[*p as usize] = *v);
        let contexts = tensors.decode(&[DecoderInput { values, tokens: cell.clone() }], &encoded, None).unwrap();
        let predicted = tensors.predict(&contexts).unwrap().to_vec1::<f32>().unwrap();
        let enhanced = decoder.enhance(&transformer.embedding, cell, fast.view(range.start));
        assert!(worst(&enhanced, &predicted[..90]) < 1e-5);
        let wanted: Vec<u32> = (0..90).rev().collect();
        let found = decoder.contexts(&transformer.embedding, cell, fast.view(range.start), &wanted);
        for (found, p) in found.chunks(36).zip(&wanted) {
            assert!(worst(found, &contexts.get(*p as usize).unwrap().to_vec1::<f32>().unwrap()) < 1e-5);
        }
    }
}

/// Genes and counts of one cell.
type Stored = (Vec<u32>, Vec<f32>);

/// Cells of many lengths, with a placement that takes gene i to position i.
fn stored(model: &Model, cells: usize) -> (Vec<Stored>, Placement) {
    let by_name: std::collections::HashMap<String, Vec<u32>> = (0..90).map(|i| (format!("gene{i}"), vec![i])).collect();
    let placement = model.vocabulary().place(Nomenclature::hgnc(), &by_name, |_| None);
    let cell = |c: usize| {
        let genes: Vec<u32> = (0..90).filter(|g| (g * 31 + c as u32 * 17).is_multiple_of(2 + c as u32 % 9)).collect();
        let values = genes.iter().map(|g| (1 + (g + c as u32) % 6) as f32).collect();
        (genes, values)
    };
    ((0..cells).map(cell).collect(), placement)
}

/// Embeddings, predictions and contexts of cells on a device beside those of the kernels.
fn beside_kernels(model: Model, device: &Device, precision: Dtype) -> f32 {
    let (cells, placement) = stored(&model, 21);
    let samples = || {
        let profile = |(gene_ids, values)| Sample { profile: Profile { gene_ids, values }, total: None };
        cells.iter().map(move |(g, v): &Stored| Some(profile((g.as_slice(), v.as_slice()))))
    };
    let recipe = Recipe { precision, ..Recipe::of_model("small") };
    let all = |model: &Model| {
        let embedded = model.embed(&recipe, samples(), &placement, 150).unwrap();
        let enhanced = model.enhance(&recipe, samples(), &placement, 150).unwrap();
        let contexts = model.contexts(&recipe, &[3, 89], samples(), &placement, 150).unwrap();
        [embedded.vectors, enhanced.vectors, contexts.vectors].concat()
    };
    let kernels = all(&model);
    worst(&kernels, &all(&model.on(Some(device.clone()))))
}

#[test]
fn a_device_gives_what_the_kernels_give() {
    let model = || Model::load("small", encode(&small().0).unwrap().0).unwrap();
    assert!(beside_kernels(model(), &Device::Cpu, Dtype::F32) < 1e-5);
    match Device::new_cuda_with_stream(0) {
        Ok(gpu) => {
            assert!(beside_kernels(model(), &gpu, Dtype::F32) < 1e-3);
            assert!(beside_kernels(model(), &gpu, Dtype::Bf16) < 0.1);
        }
        Err(_) => eprintln!("no device: the model was not run on a GPU"),
    }
}

#[test]
fn a_cell_of_the_vocabulary_alone_is_refused_without_it() {
    let (weights, _) = small();
    let model = Model::load("small", encode(&weights).unwrap().0).unwrap();
    let by_name = std::collections::HashMap::from([("gene4".to_owned(), vec![4])]);
    let placement = model.vocabulary().place(Nomenclature::hgnc(), &by_name, |_| None);
    let cell = |gene_ids: &'static [u32]| Some(Sample { profile: Profile { gene_ids, values: &[20.0] }, total: None });
    let found = model.enhance(&Recipe::of_model("small"), [cell(&[4]), cell(&[5])].into_iter(), &placement, 10);
    let found = found.unwrap();
    assert_eq!(found.refused, [None, Some(NotEmbeddable::NoGenes)]);
    assert!(found.vectors[..90].iter().any(|v| *v != 0.0) && found.vectors[90..].iter().all(|v| *v == 0.0));
}
