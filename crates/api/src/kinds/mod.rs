//! The kinds, one file each (`kinds/<group>/<resource>.rs`, the core group in `kinds/core/`): `pub fn kind() -> Kind`.
//! What several kinds share (pod templates, label selectors, volumes) has a module of its own here.
