//! AdamW with decoupled weight decay (Loshchilov & Hutter 2019), learning rates over time, and clipping.
//!
//! Knows nothing of models: weights and gradients are rows of numbers.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainingError};

/// Numbers one thread takes at a time. Sums over them have a fixed order.
const PART: usize = 1 << 16;

/// How weights follow gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adam {
    /// Learning rate at its highest.
    pub learning_rate: f64,
    /// Steps over which it rises from 0.
    pub warm_up: u64,
    /// What it does then.
    pub schedule: Schedule,
    /// Part of the learning rate that a cosine ends at.
    pub floor: f64,
    /// How much of the mean gradient, and of the mean square, is kept.
    pub betas: (f64, f64),
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// Part of every weight that is taken off in a step, times the learning rate.
    pub weight_decay: f64,
    /// Gradients longer than this are shortened to it.
    pub clip: f64,
}

/// What a learning rate does after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls along half a cosine.
    Cosine,
}

impl std::str::FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "constant" => Ok(Schedule::Constant),
            "cosine" => Ok(Schedule::Cosine),
            _ => Err(format!("unknown schedule '{text}': it is one of constant, cosine")),
        }
    }
}

impl Default for Adam {
    /// As the authors trained: rate 1e-4, no weight decay, clipping at 1; torch's other defaults.
    fn default() -> Self {
        Self {
            learning_rate: 1e-4,
            warm_up: 9766,
            schedule: Schedule::Constant,
            floor: 0.1,
            betas: (0.9, 0.999),
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
        }
    }
}

impl Adam {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`TrainingError::Setting`] naming the one that makes no sense.
    pub fn check(&self) -> Result<()> {
        let below_one = |value: f64| (0.0..1.0).contains(&value);
        let wrong = [
            ("learning rate", self.learning_rate, self.learning_rate > 0.0, "above 0"),
            ("floor", self.floor, (0.0..=1.0).contains(&self.floor), "a part, 0 to 1"),
            ("first beta", self.betas.0, below_one(self.betas.0), "below 1"),
            ("second beta", self.betas.1, below_one(self.betas.1), "below 1"),
            ("epsilon", self.epsilon, self.epsilon > 0.0, "above 0"),
            ("weight decay", self.weight_decay, self.weight_decay >= 0.0, "0 or more"),
            ("clip", self.clip, self.clip > 0.0, "above 0"),
        ];
        match wrong.into_iter().find(|(_, value, right, _)| !(*right && value.is_finite())) {
            Some((name, value, _, is)) => Err(TrainingError::setting(name, value, is)),
            None => Ok(()),
        }
    }

    /// The learning rate of a step, from 0, of `steps`.
    pub fn rate(&self, step: u64, steps: u64) -> f64 {
        if step < self.warm_up {
            return self.learning_rate * (step + 1) as f64 / self.warm_up as f64;
        }
        match self.schedule {
            Schedule::Constant => self.learning_rate,
            Schedule::Cosine => {
                let part = (step - self.warm_up) as f64 / steps.saturating_sub(self.warm_up).max(1) as f64;
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * part.min(1.0)).cos());
                self.learning_rate * (self.floor + (1.0 - self.floor) * cosine)
            }
        }
    }
}

/// Moments of gradients.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Running mean.
    pub mean: Vec<f32>,
    /// Running mean square.
    pub square: Vec<f32>,
}

/// The length of a gradient.
pub fn norm(gradient: &[f32]) -> f64 {
    let parts = gradient.par_chunks(PART).map(|part| part.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>());
    parts.collect::<Vec<f64>>().iter().sum::<f64>().sqrt()
}

impl Moments {
    /// Of no step yet.
    pub fn new(weights: usize) -> Self {
        Self { mean: vec![0.0; weights], square: vec![0.0; weights] }
    }

    /// Moves weights by a gradient that is `scale` times what is given: step `step` (from 0) at a rate.
    pub fn step(&mut self, adam: &Adam, step: u64, rate: f64, gradient: &[f32], scale: f64, weights: &mut [f32]) {
        let (first, second) = adam.betas;
        let after = (step + 1).min(i32::MAX as u64) as i32;
        let (mean_correction, square_correction) = (1.0 - first.powi(after), 1.0 - second.powi(after));
        let parts = weights.par_chunks_mut(PART).zip(gradient.par_chunks(PART));
        let moments = self.mean.par_chunks_mut(PART).zip(self.square.par_chunks_mut(PART));
        parts.zip(moments).for_each(|((weights, gradient), (mean, square))| {
            let all = weights.iter_mut().zip(gradient).zip(mean.iter_mut().zip(square));
            for ((weight, gradient), (mean, square)) in all {
                let gradient = f64::from(*gradient) * scale;
                let m = first * f64::from(*mean) + (1.0 - first) * gradient;
                let s = second * f64::from(*square) + (1.0 - second) * gradient * gradient;
                (*mean, *square) = (m as f32, s as f32);
                let step = m / mean_correction / ((s / square_correction).sqrt() + adam.epsilon);
                let kept = f64::from(*weight) * (1.0 - rate * adam.weight_decay);
                *weight = (kept - rate * step) as f32;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_fall_as_said() {
        let adam = Adam { learning_rate: 1.0, warm_up: 10, schedule: Schedule::Cosine, floor: 0.1, ..Adam::default() };
        assert_eq!(adam.rate(0, 110), 0.1);
        assert_eq!(adam.rate(9, 110), 1.0);
        assert_eq!(adam.rate(10, 110), 1.0);
        assert!((adam.rate(60, 110) - 0.55).abs() < 1e-12);
        assert!((adam.rate(110, 110) - 0.1).abs() < 1e-12);
        let constant = Adam { schedule: Schedule::Constant, ..adam };
        assert_eq!(constant.rate(1000, 110), 1.0);
    }

    /// torch 2.15, float64: three steps of `torch.optim.AdamW([w], lr=0.1, betas=(0.9, 0.999), eps=1e-8,
    /// weight_decay=0.01)` from w = [1, -2] with gradients [0.5, -0.1], [0.2, 0.3], [-0.4, 0.25].
    #[test]
    fn steps_are_torchs() {
        let adam = Adam { learning_rate: 0.1, warm_up: 0, weight_decay: 0.01, ..Adam::default() };
        let (mut weights, mut moments) = (vec![1.0f32, -2.0], Moments::new(2));
        for (step, gradient) in [[0.5f32, -0.1], [0.2, 0.3], [-0.4, 0.25]].iter().enumerate() {
            // Half of the gradient twice as large.
            let halves = gradient.map(|g| g / 2.0);
            moments.step(&adam, step as u64, adam.rate(step as u64, 3), &halves, 2.0, &mut weights);
        }
        let exact = [0.789_807_354_722_304_1, -2.013_167_419_246_356];
        assert!(weights.iter().zip(exact).all(|(w, e)| (f64::from(*w) - e).abs() < 1e-6), "{weights:?}");
    }

    #[test]
    fn a_norm_is_a_length() {
        assert_eq!(norm(&[3.0, -4.0]), 5.0);
        assert_eq!(norm(&[]), 0.0);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        Adam::default().check().unwrap();
        for wrong in [
            Adam { learning_rate: 0.0, ..Adam::default() },
            Adam { betas: (0.9, 1.0), ..Adam::default() },
            Adam { clip: f64::NAN, ..Adam::default() },
        ] {
            assert!(wrong.check().is_err());
        }
    }
}
