//! One request of a drill's traffic, as its log line says it. Written in the node, read by whoever analyses.

use serde::{Deserialize, Serialize};

/// By which way a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The node's own address and the Service's NodePort.
    NodePort,
    /// The Service's ClusterIP.
    ClusterIp,
    /// The Service's DNS name, looked up for each request.
    Name,
    /// A read of the API, as a node reaches it.
    ApiRead,
    /// A write of the API.
    ApiWrite,
}

impl Way {
    /// The ways of an application's requests.
    pub const APPLICATION: [Way; 3] = [Way::NodePort, Way::ClusterIp, Way::Name];
    /// The ways of API calls.
    pub const API: [Way; 2] = [Way::ApiRead, Way::ApiWrite];

    pub fn is_api(self) -> bool {
        Way::API.contains(&self)
    }

    /// As people call it.
    pub fn title(self) -> &'static str {
        match self {
            Way::NodePort => "NodePort",
            Way::ClusterIp => "ClusterIP",
            Way::Name => "DNS name",
            Way::ApiRead => "API reads",
            Way::ApiWrite => "API writes",
        }
    }
}

impl std::str::FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Way, String> {
        serde_json::from_value(serde_json::Value::from(text)).map_err(|_| format!("{text} is no way; say node-port, cluster-ip or name"))
    }
}

/// One request and how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// When it began, in milliseconds since 1970.
    #[serde(rename = "t")]
    pub started_ms: u64,
    /// How long it took, in microseconds.
    #[serde(rename = "us")]
    pub took_us: u64,
    /// The node that asked.
    pub source: String,
    /// How often that node had been powered on since the drill began.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub boot: u32,
    pub way: Way,
    /// Over a connection that is kept from request to request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
    /// Look-ups or API calls that it took; one, if all is well.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub attempts: u8,
    /// The pod that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Why it failed; absent if it was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Request {
    pub fn ok(&self) -> bool {
        self.error.is_none()
    }

    /// When it was over, in milliseconds since 1970.
    pub fn ended_ms(&self) -> u64 {
        self.started_ms + self.took_us / 1000
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn one() -> u8 {
    1
}

fn is_one(number: &u8) -> bool {
    *number == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_only_what_is_not_usual_and_comes_back_whole() {
        let usual = Request {
            started_ms: 5,
            took_us: 700,
            source: "worker-1".into(),
            boot: 0,
            way: Way::ClusterIp,
            kept: false,
            attempts: 1,
            pod: None,
            error: None,
        };
        let line = serde_json::to_string(&usual).unwrap();
        assert_eq!(line, r#"{"t":5,"us":700,"source":"worker-1","way":"cluster-ip"}"#);
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), usual);
        let failed = Request { boot: 1, kept: true, attempts: 3, pod: Some("web-1".into()), error: Some("refused".into()), ..usual };
        let line = serde_json::to_string(&failed).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), failed);
    }

    #[test]
    fn a_way_is_read_from_its_name() {
        assert_eq!("node-port".parse(), Ok(Way::NodePort));
        assert!("ingress".parse::<Way>().is_err());
    }
}
