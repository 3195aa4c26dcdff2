//! ResourceQuota.

use super::Plugin;

#[derive(Default)]
pub(super) struct ResourceQuota {}

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }
}
