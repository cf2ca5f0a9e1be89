//! Gradients of every weight, and fused ops beside plain tensor operations.

use std::collections::HashMap;

use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{LayerNorm, VarBuilder};

use super::{DecoderInput, XTrimoGene};
use crate::fused::FusedOps;
use crate::model::tests::{small, worst};
use crate::{Packed, Tokens, Weights};

/// The model over these tensors on the CPU, by plain tensor operations or by fused ops.
fn load(weights: &Weights, tensors: HashMap<String, Tensor>, is_fused: bool) -> XTrimoGene {
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let fused = is_fused.then(|| FusedOps::new(&Device::Cpu, &weights.config).unwrap());
    XTrimoGene::load_with(vb, &weights.config, fused).unwrap()
}

/// A cell with all kinds of values: those of its tokens, zeros, a masked position and padding.
fn decoder_input(cell: &Tokens) -> DecoderInput {
    let mut values = vec![0f32; 92];
    cell.positions.iter().zip(&cell.values).for_each(|(p, v)| values[*p as usize] = *v);
    (values[1], values[2]) = (102.0, 103.0);
    DecoderInput { values, tokens: cell.clone() }
}

#[test]
fn fused_ops_agree_with_plain_tensor_operations() {
    let (weights, cells) = small();
    let inputs: Vec<DecoderInput> = cells.iter().map(decoder_input).collect();
    let outputs = |is_fused: bool| {
        let model = load(&weights, weights.tensors.clone(), is_fused);
        let encoded = model.encode(&Packed::new(cells.iter())).unwrap();
        let all = model.decode(&inputs, &encoded, None).unwrap().to_vec2::<f32>().unwrap();
        let rows = [0, 5, 91, 92, 100];
        let selected = model.decode(&inputs, &encoded, Some(&rows)).unwrap().to_vec2::<f32>().unwrap();
        for (context, row) in selected.iter().zip(rows) {
            assert!(worst(context, &all[row as usize]) < 1e-5, "row {row} alone differs from row {row} among all");
        }
        (encoded.flatten_all().unwrap().to_vec1::<f32>().unwrap(), all.concat())
    };
    let ((encoded, contexts), (plain_encoded, plain_contexts)) = (outputs(true), outputs(false));
    assert!(worst(&encoded, &plain_encoded) < 1e-5 && worst(&contexts, &plain_contexts) < 1e-5);
}

#[test]
fn every_variable_gets_a_finite_gradient_that_is_not_zero() {
    let (weights, cells) = small();
    let inputs: Vec<DecoderInput> = cells.iter().map(decoder_input).collect();
    for is_fused in [false, true] {
        let vars: HashMap<String, Var> =
            weights.tensors.iter().map(|(n, t)| (n.clone(), Var::from_tensor(t).unwrap())).collect();
        let model = load(&weights, vars.iter().map(|(n, v)| (n.clone(), v.as_tensor().clone())).collect(), is_fused);
        let encoded = model.encode(&Packed::new(cells.iter())).unwrap();
        let predicted = model.predict(&model.decode(&inputs, &encoded, None).unwrap()).unwrap();
        let gradients = predicted.sqr().unwrap().mean_all().unwrap().backward().unwrap();
        for (name, var) in vars.iter().filter(|(n, _)| !n.ends_with("projection_matrix")) {
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} has no gradient, fused: {is_fused}"));
            assert_eq!(gradient.dims(), var.dims(), "{name}");
            let values = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let is_finite = values.iter().all(|g| g.is_finite());
            assert!(is_finite && values.iter().any(|g| *g != 0.0), "{name}, fused: {is_fused}");
        }
    }
}

#[test]
fn a_missing_weight_and_one_of_the_wrong_shape_are_named() {
    let (weights, _) = small();
    let error = |tensors: HashMap<String, Tensor>| {
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        XTrimoGene::load(vb, &weights.config).unwrap_err().to_string()
    };
    let name = "decoder.performer.net.layers.1.0.fn.to_v.weight";
    let mut missing = weights.tensors.clone();
    missing.remove(name);
    assert!(error(missing).contains(name));
    let mut narrow = weights.tensors.clone();
    narrow.insert(name.to_owned(), Tensor::zeros((3, 3), DType::F32, &Device::Cpu).unwrap());
    assert!(error(narrow).contains(name));
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let (weights, cells) = small();
    for is_fused in [false, true] {
        let model = load(&weights, weights.tensors.clone(), is_fused);
        let outside = Tokens { positions: vec![93], values: vec![1.0] };
        assert!(model.encode(&Packed::new([&outside].into_iter())).is_err());
        let encoded = model.encode(&Packed::new(cells.iter())).unwrap();
        let outside = DecoderInput { values: vec![0.0; 92], tokens: outside };
        assert!(model.decode(&[outside], &encoded, None).is_err());
        let short = DecoderInput { values: vec![0.0; 91], tokens: cells[0].clone() };
        assert!(model.decode(&[short], &encoded, None).is_err());
    }
}

/// If this fails after an upgrade of candle-nn, its fused layer norm has a backward pass: use it in [`super::ops`].
#[test]
fn candle_nn_layer_norm_still_cuts_gradients() {
    let var = |values: &[f32]| Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
    let (weight, bias) = (var(&[1.0, 2.0, 3.0]), var(&[0.5, 0.5, 0.5]));
    let x = Var::from_tensor(&Tensor::new(&[[1f32, -2.0, 4.0]], &Device::Cpu).unwrap()).unwrap();
    let norm = LayerNorm::new(weight.as_tensor().clone(), bias.as_tensor().clone(), 1e-5);
    let fused = norm.forward(x.as_tensor()).unwrap();
    let slow = candle_nn::ops::layer_norm_slow(x.as_tensor(), &weight, &bias, 1e-5).unwrap();
    assert!(worst(&fused.to_vec2::<f32>().unwrap()[0], &slow.to_vec2::<f32>().unwrap()[0]) < 1e-6);
    let gradients = |output: Tensor| output.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (of_fused, of_slow) = (gradients(fused), gradients(slow));
    for var in [&x, &weight, &bias] {
        assert!(of_fused.get(var).is_none() && of_slow.get(var).is_some());
    }
}
