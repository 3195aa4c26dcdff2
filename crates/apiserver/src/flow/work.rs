//! How many seats a request needs: one, unless it is a list of many objects.

use crate::Server;
use api::request::{Query, RequestInfo};

/// Objects of a list that are taken to be one seat's work.
const OBJECTS_PER_SEAT: usize = 100;
/// Seats of the widest request.
pub(super) const SEATS_MAX: usize = 10;

/// The seats for a request, before the level's own limit.
pub(super) fn width(server: &Server, info: &RequestInfo, query: &Query) -> usize {
    let lists = matches!(info.verb.as_str(), "list" | "deletecollection") || (info.verb == "watch" && query.flag("sendInitialEvents") == Some(true));
    if !lists || !info.name.is_empty() || !info.subresource.is_empty() {
        return 1;
    }
    // A resource that is not in the catalogue has nothing to list.
    let Some(kind) = server.catalogue.load().resource(&info.group, &info.resource).cloned() else { return 1 };
    let selects = ["labelSelector", "fieldSelector"].iter().any(|key| query.get(key).is_some_and(|text| !text.is_empty()));
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    seats(server.cache.of(&kind).len(), limit, selects)
}

/// The seats for a list out of so many objects. One that selects looks at all of them, whatever it shows.
fn seats(stored: usize, limit: Option<usize>, selects: bool) -> usize {
    let looked_at = match limit {
        Some(limit) if !selects => stored.min(limit),
        _ => stored,
    };
    looked_at.div_ceil(OBJECTS_PER_SEAT).clamp(1, SEATS_MAX)
}

#[cfg(test)]
mod tests {
    use super::seats;

    #[test]
    fn lists_are_as_wide_as_what_they_look_at() {
        assert_eq!(seats(0, None, false), 1);
        assert_eq!(seats(100, None, false), 1);
        assert_eq!(seats(450, None, false), 5);
        assert_eq!(seats(5000, None, false), 10);
        assert_eq!(seats(5000, Some(200), false), 2);
        assert_eq!(seats(5000, Some(10), true), 10);
    }
}
