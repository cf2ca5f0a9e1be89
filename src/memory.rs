//! How much memory this process may use.

use sysinfo::System;

/// Bytes of memory that this process may use: the machine's, or the limit of its container (cgroup) where that is
/// lower. `None` where the system does not tell.
pub(crate) fn limit() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory();
    let machine = system.total_memory();
    // `cgroup_limits` panics where the machine's memory is unknown.
    if machine == 0 {
        return None;
    }
    let container = system.cgroup_limits().map(|limits| limits.total_memory).filter(|total| *total > 0);
    Some(container.map_or(machine, |container| container.min(machine)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_above_zero_and_at_most_the_machines_memory() {
        let mut system = System::new();
        system.refresh_memory();
        let (limit, machine) = (limit().unwrap(), system.total_memory());
        assert!(limit > 0 && limit <= machine, "{limit} of {machine}");
    }
}
