//! Every bound of the API machinery, by name, with what happens at it. Nothing else in the workspace states these numbers.

/// Bytes of a request body. A longer one is refused with 413 before it is read to the end.
pub const REQUEST_BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Operations in one JSON patch. More are refused with 413.
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;
/// Bytes that one `copy` after another may add to an object in one JSON patch. Beyond it the patch is refused with 413.
pub const JSON_PATCH_COPY_BYTES_MAX: usize = REQUEST_BODY_BYTES_MAX;
/// Nesting of a decoded document. A deeper one is refused with 400, so that no body can exhaust the stack.
pub const NESTING_DEPTH_MAX: usize = 200;
/// Nodes that the aliases of one YAML document may expand to. Beyond it the document is refused with 400.
pub const YAML_NODES_MAX: usize = 500_000;
/// Bytes of JSON that one YAML document may become, with what its aliases repeat. Beyond it the document is refused with 400.
pub const YAML_AS_JSON_BYTES_MAX: usize = 16 << 20;
/// Unknown and duplicate fields that one request is told about. Later ones are counted but not named.
pub const STRICT_PROBLEMS_MAX: usize = 100;
/// Bytes of all `Warning` headers of one answer. Later warnings are cut to fit.
pub const WARNING_HEADERS_BYTES_MAX: usize = 4 * 1024;
/// Characters of one warning when the warnings of an answer do not fit.
pub const WARNING_TRUNCATED_CHARS_MAX: usize = 256;
/// Warnings that are made for one object where there may be more of them than parts of it: more do not fit into an answer.
pub const WARNINGS_MAX: usize = WARNING_HEADERS_BYTES_MAX / 32;
/// Bytes of what is found wrong with one object. What is found later is left out: an object of a million wrong items needs no
/// million answers.
pub const ERRORS_BYTES_MAX: usize = REQUEST_BODY_BYTES_MAX;
/// Bytes of all annotations of one object together.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// Characters of a name before the five random ones that `generateName` adds; longer prefixes are cut.
pub const GENERATE_NAME_CHARS_MAX: usize = 58;
/// Random characters that `generateName` adds.
pub const GENERATE_NAME_SUFFIX_CHARS: usize = 5;
/// Times that `generateName` is tried again when the name exists.
pub const GENERATE_NAME_ATTEMPTS_MAX: usize = 8;
/// Items of a list page when the client names no limit: all of them.
pub const LIST_LIMIT_DEFAULT: usize = usize::MAX;
/// Events that wait for one slow watcher. Beyond it the watch is closed, and the client starts a new one.
pub const WATCH_BUFFER_EVENTS_MAX: usize = 1024;
/// Past changes kept per resource for watches that resume. An older start answers 410.
pub const WATCH_HISTORY_EVENTS_MAX: usize = 10_000;
/// How often a watch with bookmarks gets one.
pub const WATCH_BOOKMARK_PERIOD_S: u64 = 60;
/// Shortest life of a watch whose client names no `timeoutSeconds`; the longest is twice that.
pub const WATCH_TIMEOUT_DEFAULT_S: u64 = 1800;
/// How long a read waits for the cache to reach the version it asks for before it answers 504.
pub const CACHE_FRESH_WAIT_S: u64 = 3;
/// How long a request that is neither watch nor tunnel may take before it is cut with 504.
pub const REQUEST_TIMEOUT_S: u64 = 60;
/// Seconds that a client may take to send the body of a request, unless the request itself may last; then it fails.
pub const REQUEST_BODY_TIMEOUT_S: u64 = 50;
/// Times that an update without precondition is tried again on a conflict.
pub const UPDATE_ATTEMPTS_MAX: usize = 5;
/// Managers in `metadata.managedFields` that wrote by `Update`; beyond it the oldest are merged into one.
pub const MANAGED_FIELDS_UPDATERS_MAX: usize = 10;
/// Characters of a field manager's name.
pub const FIELD_MANAGER_CHARS_MAX: usize = 128;
