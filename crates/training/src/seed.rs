//! Draws that depend on what they are for and on nothing else, so that any of them can be made again alone.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// A generator of its own for every sequence of bytes.
pub fn seeded(parts: &[&[u8]]) -> ChaCha8Rng {
    let mut hash = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hash.update(part);
    });
    ChaCha8Rng::from_seed(*hash.finalize().as_bytes())
}
