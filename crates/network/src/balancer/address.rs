//! Where an API server is: `https://10.0.0.1:6443`, as flags, files and the `kubernetes` Service say it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The port of a server of which none is named.
const DEFAULT_PORT: u16 = 6443;

/// One API server, by host name or address, and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    host: String,
    port: u16,
}

/// Why a text names no server.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not a server; say https://10.0.0.1:6443")]
pub struct NotAServer(String);

impl Server {
    /// A server at an address.
    pub fn at(address: IpAddr, port: u16) -> Server {
        Server { host: address.to_string(), port }
    }

    /// Host name or address, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address, unless it is known by name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl FromStr for Server {
    type Err = NotAServer;

    fn from_str(text: &str) -> Result<Server, NotAServer> {
        let wrong = || NotAServer(text.to_owned());
        let rest = match text.trim().split_once("://") {
            Some(("https", rest)) => rest,
            Some(_) => return Err(wrong()),
            None => text.trim(),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = if let Some(rest) = rest.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
            (host, rest.strip_prefix(':'))
        } else if rest.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()) {
            (rest, None)
        } else {
            rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)))
        };
        let port = port.map_or(Ok(DEFAULT_PORT), |port| port.parse().map_err(|_| wrong()))?;
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let usable = host.parse::<IpAddr>().is_ok() || (!host.is_empty() && host.chars().all(is_host));
        if !usable || port == 0 {
            return Err(wrong());
        }
        Ok(Server { host: host.to_owned(), port })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "https://[{}]:{}", self.host, self.port) } else { write!(f, "https://{}:{}", self.host, self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_they_are_written() {
        for (text, expected) in [
            ("https://10.0.0.1:6443", "https://10.0.0.1:6443"),
            ("10.0.0.1", "https://10.0.0.1:6443"),
            ("https://api.example.org/", "https://api.example.org:6443"),
            ("https://[fd00::1]:7443", "https://[fd00::1]:7443"),
            ("fd00::1", "https://[fd00::1]:6443"),
        ] {
            assert_eq!(text.parse::<Server>().unwrap().to_string(), expected, "{text}");
        }
        for text in ["", "http://10.0.0.1:6443", "https://", "https://a:0", "https://a:x", "https://a/b", "[fd00::1"] {
            assert!(text.parse::<Server>().is_err(), "{text}");
        }
    }
}
