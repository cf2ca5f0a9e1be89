//! What runs the layers of a model: kernels over slices on the CPU, or tensors on a device.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::batch::Packed;
use crate::decoder::Decoder;
use crate::embedding::Embedding;
use crate::encoder::Encoder;
use crate::{DecoderInput, Tokens, XTrimoGene};
use cellql_kernels::Rows;

/// Encoder and decoder over cells that are tokens already. Each result is a function of its cell alone.
pub(crate) trait Runner {
    /// Encodes a batch: `[tokens, dim]`.
    fn encode(&self, packed: &Packed) -> candle_core::Result<Rows>;

    /// Context embeddings of `wanted` positions, `[wanted, width]`, of a cell whose encoded tokens begin at row
    /// `first`.
    fn contexts(&self, tokens: &Tokens, encoded: &Rows, first: usize, wanted: &[u32]) -> candle_core::Result<Vec<f32>>;

    /// Predicted log-normalised expression of every gene, `[genes]`, of such a cell.
    fn enhance(&self, tokens: &Tokens, encoded: &Rows, first: usize) -> candle_core::Result<Vec<f32>>;
}

/// Kernels on the CPU.
pub(crate) struct OnCpu<'a> {
    pub(crate) embedding: &'a Embedding,
    pub(crate) encoder: Arc<Encoder>,
    /// `None` where only embeddings are asked for.
    pub(crate) decoder: Option<Arc<Decoder>>,
}

impl OnCpu<'_> {
    fn decoder(&self) -> candle_core::Result<&Decoder> {
        self.decoder.as_deref().ok_or_else(|| candle_core::Error::Msg("the decoder was not loaded".into()))
    }
}

impl Runner for OnCpu<'_> {
    fn encode(&self, packed: &Packed) -> candle_core::Result<Rows> {
        Ok(self.encoder.forward(self.embedding, packed))
    }

    fn contexts(&self, tokens: &Tokens, encoded: &Rows, first: usize, wanted: &[u32]) -> candle_core::Result<Vec<f32>> {
        Ok(self.decoder()?.contexts(self.embedding, tokens, encoded.view(first), wanted))
    }

    fn enhance(&self, tokens: &Tokens, encoded: &Rows, first: usize) -> candle_core::Result<Vec<f32>> {
        Ok(self.decoder()?.enhance(self.embedding, tokens, encoded.view(first)))
    }
}

/// Tensors on a device.
impl Runner for Arc<XTrimoGene> {
    fn encode(&self, packed: &Packed) -> candle_core::Result<Rows> {
        let encoded = XTrimoGene::encode(self.as_ref(), packed)?;
        let (tokens, dim) = encoded.dims2()?;
        let all = encoded.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut rows = Rows::new(tokens, dim);
        all.chunks_exact(dim).enumerate().for_each(|(i, row)| rows.row_mut(i).copy_from_slice(row));
        Ok(rows)
    }

    fn contexts(&self, tokens: &Tokens, encoded: &Rows, first: usize, wanted: &[u32]) -> candle_core::Result<Vec<f32>> {
        // The model gives them in ascending order, each once.
        let mut ascending = wanted.to_vec();
        ascending.sort_unstable();
        ascending.dedup();
        let contexts = decoded(self, tokens, encoded, first, Some(&ascending))?;
        let places: Vec<u32> = wanted.iter().map(|w| ascending.partition_point(|a| a < w) as u32).collect();
        let contexts = contexts.index_select(&Tensor::new(places, self.device())?, 0)?;
        contexts.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }

    fn enhance(&self, tokens: &Tokens, encoded: &Rows, first: usize) -> candle_core::Result<Vec<f32>> {
        let contexts = decoded(self, tokens, encoded, first, None)?;
        let mut predicted = self.predict(&contexts)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        // T and S stand last and are no genes.
        predicted.truncate(predicted.len() - 2);
        Ok(predicted)
    }
}

/// Contexts of the positions of a cell, or of those that are wanted.
fn decoded(
    model: &XTrimoGene,
    tokens: &Tokens,
    encoded: &Rows,
    first: usize,
    wanted: Option<&[u32]>,
) -> candle_core::Result<Tensor> {
    let dim = encoded.row(first).len();
    let of_cell: Vec<f32> = (first..first + tokens.len()).flat_map(|i| encoded.row(i)).copied().collect();
    let of_cell = Tensor::from_vec(of_cell, (tokens.len(), dim), model.device())?;
    let mut values = vec![0f32; model.seq_len()];
    tokens.positions.iter().zip(&tokens.values).for_each(|(p, v)| values[*p as usize] = *v);
    model.decode(&[DecoderInput { values, tokens: tokens.clone() }], &of_cell, wanted)
}
