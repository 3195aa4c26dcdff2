//! Asking for metrics: `metrics.k8s.io` for what pods use, `custom.metrics.k8s.io` and `external.metrics.k8s.io` (which are
//! somebody's add-ons) for all else.

use std::time::Duration;

use api::quantity::Quantity;
use client::{ErrorExt, limits};
use jiff::Timestamp;
use kube::Client;
use serde_json::Value;
use tokio::time::timeout;

use super::replicas::{Reading, Readings};

/// Over which time a custom metric is taken to be measured that does not say.
const WINDOW: Duration = Duration::from_secs(60);

/// Asks the API for a document; the error says in words why there is none.
async fn get(client: &Client, path: &str, query: &[(&str, &str)]) -> Result<Value, String> {
    let query: Vec<String> = query.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| format!("{name}={}", escape(value))).collect();
    let uri = format!("{path}?{}", query.join("&"));
    let request = http::Request::get(uri).body(Vec::new()).map_err(|error| error.to_string())?;
    match timeout(limits::REQUEST_TIMEOUT, client.request(request)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.short()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

/// A value as it may stand in a query or a path.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn milli(value: Option<&Value>) -> Option<i64> {
    Quantity::from_value(value?).ok().map(|quantity| quantity.milli())
}

/// `15s`, `1m30.5s`: as the API writes a time span.
fn duration(text: &str) -> Option<Duration> {
    let (mut sum, mut number) = (0.0, String::new());
    for character in text.chars() {
        if character.is_ascii_digit() || character == '.' {
            number.push(character);
            continue;
        }
        let unit = match character {
            'h' => 3600.0,
            'm' => 60.0,
            's' => 1.0,
            _ => return None,
        };
        sum += std::mem::take(&mut number).parse::<f64>().ok()? * unit;
    }
    Duration::try_from_secs_f64(sum).ok()
}

fn measured(item: &Value) -> (Option<Timestamp>, Duration) {
    let at = item["timestamp"].as_str().and_then(|text| text.parse().ok());
    (at, item["window"].as_str().and_then(duration).unwrap_or(WINDOW))
}

/// What each pod (or one container of each) uses of a resource. A pod of which a container is not known is left out.
fn readings(list: &Value, resource: &str, container: Option<&str>, now: Timestamp) -> Readings {
    let mut readings = Readings::new();
    for item in list["items"].as_array().into_iter().flatten() {
        let Some(name) = item["metadata"]["name"].as_str() else { continue };
        let containers = item["containers"].as_array().into_iter().flatten();
        let meant: Vec<_> = containers.filter(|each| container.is_none_or(|name| each["name"].as_str() == Some(name))).collect();
        let used: Option<i64> = meant.iter().map(|each| milli(each["usage"].get(resource))).sum();
        let (at, window) = measured(item);
        if let Some(milli) = used.filter(|_| !meant.is_empty()) {
            readings.insert(name.to_owned(), Reading { milli, at: at.unwrap_or(now), window });
        }
    }
    readings
}

/// What the selected pods use of a resource.
pub async fn of_resource(
    client: &Client,
    namespace: &str,
    selector: &str,
    resource: &str,
    container: Option<&str>,
    now: Timestamp,
) -> Result<Readings, String> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods");
    let list = get(client, &path, &[("labelSelector", selector)]).await;
    let list = list.map_err(|message| format!("unable to fetch metrics from resource metrics API: {message}"))?;
    Ok(readings(&list, resource, container, now))
}

/// A metric that the selected pods tell of themselves.
pub async fn of_pods(client: &Client, namespace: &str, selector: &str, metric: &str, labels: &str, now: Timestamp) -> Result<Readings, String> {
    let path = format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/pods/*/{}", escape(metric));
    let list = get(client, &path, &[("labelSelector", selector), ("metricLabelSelector", labels)]).await;
    let list = list.map_err(|message| format!("unable to fetch metrics from custom metrics API: {message}"))?;
    let items = list["items"].as_array().into_iter().flatten();
    let readings: Readings = items
        .filter_map(|item| {
            let (at, window) = measured(item);
            let reading = Reading { milli: milli(item.get("value"))?, at: at.unwrap_or(now), window };
            Some((item["describedObject"]["name"].as_str()?.to_owned(), reading))
        })
        .collect();
    if readings.is_empty() { Err("no metrics returned from custom metrics API".to_owned()) } else { Ok(readings) }
}

/// A metric of one object, in thousandths. `resource` is its plural and group (`ingresses.networking.k8s.io`).
pub async fn of_object(client: &Client, namespace: &str, resource: &str, name: &str, metric: &str, labels: &str) -> Result<i64, String> {
    let path = format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/{resource}/{}/{}", escape(name), escape(metric));
    let list = get(client, &path, &[("metricLabelSelector", labels)]).await;
    let list = list.map_err(|message| format!("unable to fetch metrics from custom metrics API: {message}"))?;
    milli(list["items"][0].get("value")).ok_or_else(|| "no metrics returned from custom metrics API".to_owned())
}

/// A metric from outside the cluster, summed, in thousandths.
pub async fn external(client: &Client, namespace: &str, metric: &str, labels: &str) -> Result<i64, String> {
    let path = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}", escape(metric));
    let list = get(client, &path, &[("labelSelector", labels)]).await;
    let list = list.map_err(|message| format!("unable to fetch metrics from external metrics API: {message}"))?;
    let items =
        list["items"].as_array().filter(|items| !items.is_empty()).ok_or_else(|| "no metrics returned from external metrics API".to_owned())?;
    Ok(items.iter().filter_map(|item| milli(item.get("value"))).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::at;
    use serde_json::json;

    #[test]
    fn what_containers_use_is_summed() {
        let usage = |name: &str, cpu: &str| json!({"name": name, "usage": {"cpu": cpu, "memory": "1Ki"}});
        let list = json!({"items": [
            {"metadata": {"name": "a"}, "timestamp": "1970-01-01T00:01:00Z", "window": "15s", "containers": [usage("main", "250m"), usage("side", "1500000n")]},
            {"metadata": {"name": "b"}, "containers": []},
        ]});
        let cpu = readings(&list, "cpu", None, at(5));
        assert_eq!(cpu.get("a"), Some(&Reading { milli: 252, at: at(60), window: Duration::from_secs(15) }));
        assert_eq!(cpu.len(), 1);
        assert_eq!(readings(&list, "memory", Some("main"), at(5))["a"].milli, 1_024_000);
        assert!(readings(&list, "cpu", Some("absent"), at(5)).is_empty());
        assert_eq!(duration("1m0.5s"), Some(Duration::from_millis(60_500)));
        assert_eq!(escape("app=web,x in (a)"), "app%3Dweb%2Cx%20in%20%28a%29");
    }
}
