//! Checksum of a cell's expression. It is the same in every store.

use std::sync::Arc;

use cellql_schemas::expr::Profile;

/// Version of the rule by which cells are hashed. Models record it, because it decides which cells were held out.
pub const HASH_VERSION: u32 = 1;

/// Checksum of a cell over the identities of its genes (HGNC id, else the name in the file) and their values.
///
/// Each gene and value give two numbers of 64 bits, which are added up, so the order and the ids of genes do not
/// matter; the checksum is the first 128 bits of BLAKE3 over the sums. Cells with equal checksums are taken as equal:
/// among 10¹⁰ different cells a collision has a probability of about 10⁻¹⁸. The checksum protects against errors, not
/// against attacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 16]);

impl ContentHash {
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

/// Computes the checksums of a store's cells.
#[derive(Debug, Clone)]
pub struct CellHasher {
    /// By gene id.
    keys: Arc<[GeneKey]>,
}

/// 128 bits that stand for the identity of a gene.
type GeneKey = [u64; 2];

impl CellHasher {
    /// For genes with these identities, by gene id.
    pub fn new<'a>(identities: impl Iterator<Item = &'a str>) -> Self {
        let key = |identity: &str| {
            let hash = blake3::hash(identity.as_bytes());
            let part = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[at + i]));
            [part(0), part(8)]
        };
        Self { keys: identities.map(key).collect() }
    }

    /// The checksum of a cell. Genes that the store does not have (which no sound cell names) all count as one.
    pub fn hash(&self, cell: Profile<'_>) -> ContentHash {
        let mut sums = [0u64; 2];
        for (gene, value) in cell.gene_ids.iter().zip(cell.values) {
            let key = self.keys.get(*gene as usize).copied().unwrap_or_default();
            let [a, b] = mixed(key, value.to_bits());
            sums = [sums[0].wrapping_add(a), sums[1].wrapping_add(b)];
        }
        let mut first = [0; 16];
        first.copy_from_slice(&blake3::hash(bytemuck::cast_slice(&sums.map(u64::to_le))).as_bytes()[..16]);
        ContentHash(first)
    }
}

/// Two numbers that depend on all bits of a key and a value: halves of 128-bit products, folded by exclusive or (the
/// mixing step of wyhash). The factors are odd numbers without a pattern: digits of the square roots of 2, 3, 5 and 7.
fn mixed(key: GeneKey, value: u32) -> [u64; 2] {
    const FACTORS: [u64; 4] =
        [0x6a09_e667_f3bc_c909, 0xbb67_ae85_84ca_a73b, 0x3c6e_f372_fe94_f82b, 0xa54f_f53a_5f1d_36f1];
    let value = u64::from(value) + 1;
    let (a, b) = (key[0] ^ value.wrapping_mul(FACTORS[0]), key[1] ^ value.wrapping_mul(FACTORS[1]).rotate_left(32));
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    [fold(a, b), fold(a.rotate_left(29) ^ FACTORS[2], b ^ FACTORS[3])]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(names: &[&str], gene_ids: &[u32], values: &[f32]) -> ContentHash {
        CellHasher::new(names.iter().copied()).hash(Profile { gene_ids, values })
    }

    #[test]
    fn a_hash_depends_on_identities_and_values_and_not_on_their_numbers() {
        let one = hash(&["HGNC:1", "HGNC:2", "HGNC:3"], &[0, 2], &[1.0, 5.0]);
        assert_eq!(one, hash(&["HGNC:3", "x", "HGNC:1"], &[0, 2], &[5.0, 1.0]));
        for (genes, values) in [([0, 2], [5.0, 1.0]), ([0, 1], [1.0, 5.0]), ([0, 2], [1.0, 6.0])] {
            assert_ne!(one, hash(&["HGNC:1", "HGNC:2", "HGNC:3"], &genes, &values));
        }
        assert_ne!(one, hash(&["HGNC:1", "HGNC:2", "HGNC:3"], &[0], &[1.0]));
    }

    /// A changed hash would change which cells models held out. The value is that of the definition written in Python,
    /// with the package blake3.
    #[test]
    fn hashes_stay_what_they_are() {
        assert_eq!(
            hash(&["HGNC:6081", "HGNC:4191"], &[0, 1], &[12.0, 3.0]).to_hex(),
            "0c8273c7683dfbd4958368d21687d7d1"
        );
    }

    #[test]
    fn hashes_of_small_cells_differ_and_are_spread_evenly() {
        let names: Vec<String> = (0..200).map(|i| format!("HGNC:{i}")).collect();
        let hasher = CellHasher::new(names.iter().map(String::as_str));
        let mut hashes: Vec<ContentHash> = Vec::new();
        for gene in 0..200 {
            for value in 1..60u8 {
                hashes.push(hasher.hash(Profile { gene_ids: &[gene], values: &[f32::from(value)] }));
            }
        }
        let ones = hashes.iter().map(|hash| u128::from_be_bytes(*hash.bytes()).count_ones()).sum::<u32>();
        let mean = f64::from(ones) / hashes.len() as f64;
        assert!((mean - 64.0).abs() < 0.5, "{mean}");
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 200 * 59);
    }

    #[test]
    fn a_hash_reads_back() {
        let one = hash(&["a"], &[0], &[1.0]);
        assert_eq!(ContentHash::from_hex(&one.to_hex()), Some(one));
        assert!(ContentHash::from_hex("zz").is_none() && ContentHash::from_hex(&"+".repeat(32)).is_none());
    }
}
