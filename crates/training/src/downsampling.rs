//! Downsampling of counts: x → Binomial(x, rate), each count kept with one probability.

use rand::Rng;
use rand_distr::{Binomial, Distribution};

use crate::error::{Result, TrainingError};

/// Draws how many of `count` counts are kept if each is kept with probability `rate`. A count of zero draws no random
/// number.
///
/// # Errors
/// [`TrainingError::Setting`] for a rate that is not between 0 and 1.
///
/// ```
/// use cellql_training::{downsampled, seeded};
///
/// let mut rng = seeded(&[b"example"]);
/// assert_eq!(downsampled(7, 1.0, &mut rng)?, 7);
/// assert!(downsampled(1000, 0.5, &mut rng)? < 700);
/// # Ok::<(), cellql_training::TrainingError>(())
/// ```
pub fn downsampled(count: u64, rate: f64, rng: &mut impl Rng) -> Result<u64> {
    if count == 0 {
        return Ok(0);
    }
    let kept = Binomial::new(count, rate).map_err(|_| {
        TrainingError::setting("fraction of the counts that downsampling keeps:", rate, "between 0 and 1")
    })?;
    Ok(kept.sample(rng))
}
