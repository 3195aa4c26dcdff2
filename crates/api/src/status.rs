//! `Status`: Kubernetes' form of an answer that is not an object, made in one table.
