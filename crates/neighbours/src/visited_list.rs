//! The visited list of a search.

/// Which vectors a search has visited: one bit a vector. Only the words that were written are cleared.
#[derive(Debug, Default)]
pub(crate) struct VisitedList {
    words: Vec<u64>,
    /// Positions of the words that are not zero.
    written: Vec<u32>,
}

impl VisitedList {
    /// Forgets all vectors and makes room for `n`.
    pub(crate) fn clear(&mut self, n: usize) {
        for word in self.written.drain(..) {
            self.words[word as usize] = 0;
        }
        self.words.resize(self.words.len().max(n.div_ceil(64)), 0);
    }

    /// Marks a vector as visited. True if it was not visited before.
    #[inline(always)]
    pub(crate) fn insert(&mut self, id: u32) -> bool {
        let (word, bit) = (&mut self.words[id as usize / 64], 1 << (id % 64));
        if *word == 0 {
            self.written.push(id / 64);
        }
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_new_once_per_search() {
        let mut visited = VisitedList::default();
        for _ in 0..2 {
            visited.clear(100);
            assert!(visited.insert(7) && visited.insert(8) && visited.insert(99) && !visited.insert(7));
        }
    }
}
