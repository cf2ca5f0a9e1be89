//! Checksum of a cell's expression.

use cellql_schemas::expr::Profile;

/// Checksum of a cell: the first 128 bits of BLAKE3 over its gene ids and then its values, little-endian.
///
/// Cells with equal checksums are taken as equal: among 10¹⁰ different cells a collision has a probability of about
/// 10⁻¹⁸.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 16]);

impl ContentHash {
    /// The checksum of a cell.
    pub fn of(cell: Profile<'_>) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(bytemuck::cast_slice(cell.gene_ids));
        hash.update(bytemuck::cast_slice(cell.values));
        let mut first = [0; 16];
        first.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        Self(first)
    }

    /// The checksum as 32 hexadecimal digits, as in the column `content_hash` of `cells`.
    pub fn to_hex(self) -> String {
        use std::fmt::Write;
        self.0.iter().fold(String::with_capacity(32), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Parses the output of [`ContentHash::to_hex`]; `None` for any other text.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let number = u128::from_str_radix(text, 16).ok()?;
        Some(Self(number.to_be_bytes()))
    }

    /// The 16 bytes of the checksum.
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_the_first_digits_of_blake3_and_reads_back() {
        let hash = ContentHash::of(Profile { gene_ids: &[1, 2], values: &[3.0, 4.0] });
        let bytes: Vec<u8> = [1u32.to_le_bytes(), 2u32.to_le_bytes(), 3f32.to_le_bytes(), 4f32.to_le_bytes()].concat();
        assert_eq!(hash.to_hex(), blake3::hash(&bytes).to_hex()[..32]);
        assert_eq!(ContentHash::from_hex(&hash.to_hex()), Some(hash));
        assert!(ContentHash::from_hex("zz").is_none() && ContentHash::from_hex(&"+".repeat(32)).is_none());
    }
}
