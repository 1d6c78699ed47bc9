//! How much of the arena slow clients may hold.

/// How much of the arena clients may hold. Clones share it.
#[derive(Clone, Debug)]
pub struct PinBudget {}

impl PinBudget {
    /// At most `total_bytes_max` over all connections, and `connection_bytes_max` for each.
    pub fn new(total_bytes_max: usize, connection_bytes_max: usize) -> Self {
        let _ = (total_bytes_max, connection_bytes_max);
        Self {}
    }

    /// How many bytes are held now.
    pub fn pinned_bytes(&self) -> usize {
        unimplemented!()
    }
}
