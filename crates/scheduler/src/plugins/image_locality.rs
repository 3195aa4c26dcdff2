//! ImageLocality: nodes that already hold the pod's images are better, by size, and less so for images that only few
//! nodes hold (lest every pod of an image lands on the one node that has it).

use std::collections::HashMap;

use crate::framework::{Plugin, SCORE_MAX, Score};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The plugin.
pub struct ImageLocality;

/// Less than this is as quickly pulled as not.
const SIZE_MIN_BYTES: i64 = 23 * 1024 * 1024;
/// More than this per container counts no further.
const SIZE_MAX_BYTES: i64 = 1000 * 1024 * 1024;

struct Images {
    /// How widespread each image is, from 0 to 1.
    spread: HashMap<String, f64>,
    containers: i64,
}

impl Score for Images {
    fn score(&self, node: &NodeInfo) -> i64 {
        let held = self.spread.iter().filter_map(|(image, spread)| node.images.get(image).map(|size| (*size, spread)));
        let bytes: i64 = held.map(|(size, spread)| (size as f64 * spread) as i64).sum();
        let most = SIZE_MAX_BYTES * self.containers;
        SCORE_MAX * (bytes.clamp(SIZE_MIN_BYTES, most) - SIZE_MIN_BYTES) / (most - SIZE_MIN_BYTES)
    }
}

/// The name under which nodes report an image: with a tag, and with the registry and path of Docker Hub spelled out.
fn reported_names(image: &str) -> Vec<String> {
    let after_slash = image.rsplit('/').next().unwrap_or(image);
    let tagged = if after_slash.contains(':') || image.contains('@') { image.to_owned() } else { format!("{image}:latest") };
    let registry = image.split_once('/').map(|(first, _)| first);
    let has_registry = registry.is_some_and(|first| first.contains(['.', ':']) || first == "localhost");
    let mut names = vec![tagged.clone()];
    if !has_registry {
        let path = if registry.is_some() { tagged } else { format!("library/{tagged}") };
        names.push(format!("docker.io/{path}"));
    }
    names
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn score<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo, _nodes: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
        let spec = pod.pod.spec.as_ref()?;
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let mut spread = HashMap::new();
        let mut count = 0;
        for container in containers {
            count += 1;
            for name in reported_names(container.image.as_deref().unwrap_or("")) {
                let nodes = snapshot.nodes_with_image(&name);
                if nodes > 0 {
                    spread.insert(name, nodes as f64 / snapshot.nodes().len() as f64);
                    break;
                }
            }
        }
        let any = !spread.is_empty();
        any.then(|| Box::new(Images { spread, containers: count }) as Box<dyn Score>)
    }
}

#[cfg(test)]
mod tests {
    use super::reported_names;

    #[test]
    fn names() {
        assert_eq!(reported_names("nginx"), ["nginx:latest", "docker.io/library/nginx:latest"]);
        assert_eq!(reported_names("me/app:1"), ["me/app:1", "docker.io/me/app:1"]);
        assert_eq!(reported_names("registry.k8s.io/pause:3.9"), ["registry.k8s.io/pause:3.9"]);
        assert_eq!(reported_names("localhost:5000/x"), ["localhost:5000/x:latest"]);
    }
}
