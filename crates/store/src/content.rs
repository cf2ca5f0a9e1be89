//! A cell by what it expresses.

use cellql_schemas::expr::Profile;

/// First 128 bits of BLAKE3 over gene ids and then values, little-endian. Two cells with the same are the same: among 10¹⁰
/// different ones, a pair shares it once in 10¹⁸ stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 16]);

impl ContentHash {
    /// Of a cell.
    pub fn of(cell: Profile<'_>) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(bytemuck::cast_slice(cell.gene_ids));
        hash.update(bytemuck::cast_slice(cell.values));
        let mut first = [0; 16];
        first.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        Self(first)
    }

    /// As the table `cells` has it: 32 hexadecimal digits.
    pub fn to_hex(self) -> String {
        use std::fmt::Write;
        self.0.iter().fold(String::with_capacity(32), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Reads [`ContentHash::to_hex`]; `None` for other text.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let number = u128::from_str_radix(text, 16).ok()?;
        Some(Self(number.to_be_bytes()))
    }

    /// Its bytes.
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
