//! Model calls over a batch of cells. Vectors that this session computed before ([`super::vector_cache`]) or that the
//! store holds ([`super::stored_embeddings`]) are not computed again.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use cellql_schemas::recipe::Recipe;
use cellql_udfs::engine::Embedded;
use cellql_udfs::over_cells::Cells;
use datafusion::scalar::ScalarValue;

use super::StoreEngine;
use super::engine::Loaded;
use super::model_metrics::{self, ModelMetrics};
use super::stored_embeddings::{self, StoredEmbeddings};
use super::vector_cache::{self, CachedVector};
use crate::error::Result;
use cellql_model::{Embeddings, Sample};
use cellql_store::ContentHash;

/// Name of what [`StoreEngine::remembering`] computes for an embedding of a cell.
pub(super) const EMBED: &str = "embed";

impl StoreEngine {
    /// Computes `dim` numbers of each cell, of each distinct one once per session: what was computed before is
    /// remembered, and what the store holds is read.
    pub(super) fn remembering(
        &self,
        what: &str,
        recipe: &Recipe,
        cells: Cells,
        dim: usize,
        compute: impl FnOnce(&Loaded, &mut dyn Iterator<Item = Option<Sample<'_>>>) -> Result<Embeddings>,
    ) -> Result<Embedded> {
        let n = cells.profiles.len();
        let sample = |row: usize| cells.profiles.get(row).map(|profile| Sample { profile, total: cells.total(row) });
        let hashes: Vec<Option<ContentHash>> =
            (0..n).map(|row| sample(row).map(|s| self.hasher.hash(s.profile))).collect();
        let key = |row: usize| hashes[row].map(|hash| vector_cache::key(what, recipe, hash, cells.total(row)));
        let keys: Vec<Option<vector_cache::Key>> = (0..n).map(key).collect();
        // One caller at a time: a model call uses every core, and two that meet the same cell compute it once.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows: Vec<Option<CachedVector>> = {
            let cache = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
            keys.iter().map(|key| key.as_ref().and_then(|k| cache.get(k))).collect()
        };
        let remembered = rows.iter().flatten().count() as u64;
        let mut first: HashMap<vector_cache::Key, usize> = HashMap::new();
        for row in (0..n).filter(|row| rows[*row].is_none()) {
            if let Some(key) = keys[row] {
                first.entry(key).or_insert(row);
            }
        }
        let mut new: Vec<usize> = first.values().copied().collect();
        new.sort_unstable();
        let mut fresh: Vec<(usize, CachedVector)> = Vec::new();
        if what == EMBED && cells.totals.is_none() {
            fresh = self.stored_of(recipe, &new, &hashes)?;
            new.retain(|row| fresh.binary_search_by_key(row, |(found, _)| *found).is_err());
        }
        if !fresh.is_empty() {
            self.note_use(recipe)?;
        }
        model_metrics::add(ModelMetrics { remembered, stored: fresh.len() as u64, ..ModelMetrics::default() });
        if !new.is_empty() {
            let computed = self.computing(recipe, |loaded| compute(loaded, &mut new.iter().map(|&row| sample(row))))?;
            fresh.extend(new.iter().enumerate().map(|(i, &row)| {
                let vector = computed.valid[i].then(|| Arc::from(&computed.vectors[i * dim..(i + 1) * dim]));
                (row, CachedVector { vector, genes_seen: computed.genes_seen[i] })
            }));
        }
        let mut cache = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
        for (row, one) in fresh {
            if let Some(key) = keys[row] {
                cache.put(key, one.clone());
            }
            rows[row] = Some(one);
        }
        let twin = |row: usize| keys[row].and_then(|k| first.get(&k)).and_then(|&at| rows[at].clone());
        Ok(together((0..n).map(|row| rows[row].clone().or_else(|| twin(row))), dim))
    }

    /// What the store's embedding table of a recipe holds of some rows, ascending.
    fn stored_of(
        &self,
        recipe: &Recipe,
        rows: &[usize],
        hashes: &[Option<ContentHash>],
    ) -> Result<Vec<(usize, CachedVector)>> {
        let Some(stored) = self.stored(recipe)? else { return Ok(Vec::new()) };
        let wanted: Vec<ContentHash> = rows.iter().filter_map(|row| hashes[*row]).collect();
        let found = self.wait(stored.fetch(&wanted))?;
        Ok(rows.iter().copied().zip(found).filter_map(|(row, one)| Some((row, one?))).collect())
    }

    /// The stored embeddings of a recipe, opened when first asked for.
    fn stored(&self, recipe: &Recipe) -> Result<Option<Arc<StoredEmbeddings>>> {
        if self.only_computes {
            return Ok(None);
        }
        let mut all = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&recipe.name()) {
            return Ok(known.clone());
        }
        let sha256 = &self.entry(Some(&recipe.model))?.sha256;
        let opened = self.wait(StoredEmbeddings::open(self.store(), recipe, sha256))?.map(Arc::new);
        all.insert(recipe.name(), opened.clone());
        Ok(opened)
    }

    /// For people: where the results of a call of a model function come from.
    pub(super) fn source(&self, function: &str, constants: &[Option<&ScalarValue>]) -> String {
        let asked = (function == cellql_udfs::embed::NAME).then(|| cellql_udfs::embed::recipe(self, constants).ok());
        let Some(recipe) = asked.flatten() else { return format!("{function}: model") };
        let total = cellql_udfs::embed::DESCRIPTION.position("total").and_then(|at| constants.get(at));
        let has_total = total.is_some_and(|t| t.is_none_or(|value| !value.is_null()));
        let is_stored = || {
            let sha256 = &self.entry(Some(&recipe.model)).ok()?.sha256;
            self.wait(stored_embeddings::is_stored(self.store(), &recipe, sha256)).ok()
        };
        match !self.only_computes && !has_total && is_stored() == Some(true) {
            true => format!("{function}: embeddings.\"{}\", else model '{}'", recipe.name(), recipe.model),
            false => format!("{function}: model '{}'", recipe.model),
        }
    }

    /// Notes where numbers come from untrained weights, computed now or before.
    fn note_use(&self, recipe: &Recipe) -> Result<()> {
        let trained = self.entry(Some(&recipe.model))?.trained;
        self.note(|notices| {
            if !trained && !notices.untrained.contains(&recipe.model) {
                notices.untrained.push(recipe.model.clone());
            }
        });
        Ok(())
    }

    /// Runs a model and notes what a person should know of it.
    fn computing(&self, recipe: &Recipe, compute: impl FnOnce(&Loaded) -> Result<Embeddings>) -> Result<Embedded> {
        let loaded = self.loaded(&recipe.model)?;
        let start = Instant::now();
        let out = compute(&loaded)?;
        let done = out.refused.iter().filter(|why| why.is_none()).count() as u64;
        model_metrics::add(ModelMetrics {
            computed: done,
            tokens: out.tokens,
            batches: out.batches,
            seconds: start.elapsed().as_secs_f64(),
            ..ModelMetrics::default()
        });
        self.note_use(recipe)?;
        self.note(|notices| {
            for why in out.refused.iter().flatten() {
                *notices.not_embedded.entry(why.to_string()).or_default() += 1;
            }
            notices.cells_embedded += done;
        });
        let valid = out.refused.iter().map(Option::is_none).collect();
        Ok(Embedded { vectors: out.vectors, genes_seen: out.genes_seen, valid })
    }

    /// Embeds cells, without looking up or remembering them.
    ///
    /// # Errors
    /// An unknown model, or values the recipe does not allow.
    pub fn embed_cells<'a>(
        &self,
        recipe: &Recipe,
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        token_budget: usize,
    ) -> Result<Embedded> {
        self.computing(recipe, |l| Ok(l.model.embed(recipe, cells, &l.placement, token_budget)?))
    }

    /// Context embeddings of the genes at `positions` of the vocabulary, `[cells, positions, context_dim]`.
    ///
    /// # Errors
    /// As [`StoreEngine::embed_cells`].
    pub fn contexts<'a>(
        &self,
        recipe: &Recipe,
        positions: &[u32],
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        token_budget: usize,
    ) -> Result<Embedded> {
        self.computing(recipe, |l| Ok(l.model.contexts(recipe, positions, cells, &l.placement, token_budget)?))
    }

    /// Predicted expression of every vocabulary gene, `[cells, genes]`.
    ///
    /// # Errors
    /// As [`StoreEngine::embed_cells`].
    pub fn enhanced<'a>(
        &self,
        recipe: &Recipe,
        cells: impl Iterator<Item = Option<Sample<'a>>>,
        token_budget: usize,
    ) -> Result<Embedded> {
        self.computing(recipe, |l| Ok(l.model.enhance(recipe, cells, &l.placement, token_budget)?))
    }
}

/// One after the other; zeros where there is none.
fn together(found: impl Iterator<Item = Option<CachedVector>>, dim: usize) -> Embedded {
    let mut out = Embedded::default();
    for one in found {
        let vector = one.as_ref().and_then(|f| f.vector.clone());
        out.valid.push(vector.is_some());
        out.genes_seen.push(one.map_or(0, |f| f.genes_seen));
        match vector {
            Some(vector) => out.vectors.extend_from_slice(&vector),
            None => out.vectors.resize(out.vectors.len() + dim, 0.0),
        }
    }
    out
}
