//! Shared informers: one watch per kind (and selector) per process, its objects in memory, everyone served from there.
//!
//! CONTRACT (filled in by this module):
//!
//! ```ignore
//! #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
//! pub struct Key { pub namespace: String /* empty: cluster scope */, pub name: String }
//! impl Key { pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Key; pub fn of<K: kube::Resource>(o: &K) -> Key }  // Display "ns/name"
//!
//! pub trait Object: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}   // blanket impl
//!
//! #[derive(Clone)] pub struct Informers { .. }           // one per process, cheap to clone
//! impl Informers {
//!     pub fn new(client: kube::Client) -> Informers;
//!     pub fn client(&self) -> kube::Client;
//!     pub fn all<K: Object>(&self) -> Informer<K>;                              // whole cluster
//!     pub fn selected<K: Object>(&self, s: Selection) -> Informer<K>;           // Selection { namespace: Option<String>, labels: Option<String>, fields: Option<String> }
//! }   // the same K and Selection give the same underlying watch
//!
//! #[derive(Clone)] pub struct Informer<K> { .. }
//! impl<K: Object> Informer<K> {
//!     pub fn get(&self, key: &Key) -> Option<Arc<K>>;
//!     pub fn list(&self) -> Vec<Arc<K>>;
//!     pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>>;
//!     pub fn is_synced(&self) -> bool;
//!     pub async fn synced(&self);                                              // waits for the first whole list
//!     pub fn subscribe(&self) -> Changes<K>;   // stream-like: `async fn next(&mut self) -> Option<Change<K>>`
//! }
//! pub enum Change<K> { Applied { old: Option<Arc<K>>, new: Arc<K> }, Deleted(Arc<K>) }
//!     // a subscription first replays what is there as Applied { old: None, .. }, then follows; it never loses the last
//!     // state of a key (it may merge changes of one key when the subscriber is slow).
//! ```
//! managedFields are dropped on arrival. A failed watch is retried with back-off; objects stay until the relist.
