//! The few words this crate speaks with the kernel over rtnetlink and sysctl: routes, VXLAN, neighbours, addresses.
//!
//! What must stay true: every route made here carries our own protocol number, and only such routes are ever removed;
//! making what is there already is no error.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, LinkUnspec, LinkVxlan, RouteMessageBuilder};

/// The protocol number of this crate's routes (as `ip route` shows it): those below 128 are taken or the kernel's.
pub const ROUTE_PROTOCOL: u8 = 213;
/// The protocol number of the Service proxy's one route, which the pod network must not take for one of its own.
pub const SERVICE_ROUTE_PROTOCOL: u8 = 214;

/// Why the kernel could not be asked or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] std::io::Error),
    /// The kernel refused.
    #[error("cannot {what}")]
    Netlink {
        /// What was being done.
        what: String,
        /// The kernel's word.
        #[source]
        source: rtnetlink::Error,
    },
    /// A link that must be there is not.
    #[error("there is no link {0}")]
    NoLink(String),
}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let what = what.into();
    move |source| Error::Netlink { what, source }
}

/// Where packets to another node's pods go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// To the node itself, which shares a link with this one.
    Via(Ipv4Addr),
    /// Through the VXLAN device.
    Tunnel {
        /// The other end's address inside the tunnel.
        inner: Ipv4Addr,
        /// The other end's hardware address inside the tunnel.
        hardware: [u8; 6],
        /// The node's address outside.
        outer: Ipv4Addr,
    },
    /// Nowhere: an address that no pod has.
    Unreachable,
}

/// A connection to the kernel's routing.
pub struct Links {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// Opens a netlink socket in this process' network namespace.
    pub fn open() -> Result<Links, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        Ok(Links { handle, connection: tokio::spawn(connection) })
    }

    /// The index of a link, if it is there.
    pub async fn index(&self, name: &str) -> Result<Option<u32>, Error> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -NO_DEVICE => Ok(None),
            Err(error) => Err(failed(format!("look up link {name}"))(error)),
        }
    }

    /// The link that has this address, with the length of the address' prefix and the link's MTU.
    pub async fn link_of(&self, address: Ipv4Addr) -> Result<Option<OwnLink>, Error> {
        let mut addresses = self.handle.address().get().set_address_filter(IpAddr::V4(address)).execute();
        while let Some(message) = addresses.try_next().await.map_err(failed("list addresses"))? {
            let ours = message
                .attributes
                .iter()
                .any(|a| matches!(a, AddressAttribute::Local(ip) | AddressAttribute::Address(ip) if *ip == IpAddr::V4(address)));
            if !ours {
                continue;
            }
            let index = message.header.index;
            let mut links = self.handle.link().get().match_index(index).execute();
            let link = links.try_next().await.map_err(failed(format!("look up link {index}")))?;
            let mtu = link.and_then(|link| link.attributes.iter().find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None }));
            return Ok(Some(OwnLink { index, prefix_length: message.header.prefix_len, mtu: mtu.unwrap_or(1500) }));
        }
        Ok(None)
    }

    /// This crate's own routes in the main table, by destination.
    pub async fn own_routes(&self) -> Result<BTreeMap<Ipv4Net, RouteMessage>, Error> {
        let wanted = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut routes = self.handle.route().get(wanted).execute();
        let mut own = BTreeMap::new();
        while let Some(route) = routes.try_next().await.map_err(failed("list routes"))? {
            if u8::from(route.header.protocol) != ROUTE_PROTOCOL {
                continue;
            }
            let destination = route.attributes.iter().find_map(|a| match a {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => Ipv4Net::new(*ip, route.header.destination_prefix_length).ok(),
                _ => None,
            });
            if let Some(destination) = destination {
                own.insert(destination, route);
            }
        }
        Ok(own)
    }

    /// Makes or changes a route.
    pub async fn route(&self, destination: Ipv4Net, hop: &Hop, tunnel_index: Option<u32>) -> Result<(), Error> {
        let builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.network(), destination.prefix_len())
            .protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
        let message = match hop {
            Hop::Via(node) => builder.gateway(*node).build(),
            Hop::Tunnel { inner, .. } => {
                let index = tunnel_index.ok_or_else(|| Error::NoLink("for the tunnel".into()))?;
                builder.gateway(*inner).output_interface(index).onlink().build()
            }
            Hop::Unreachable => builder.kind(RouteType::Unreachable).build(),
        };
        self.handle.route().add(message).replace().execute().await.map_err(failed(format!("route {destination}")))
    }

    /// Removes one of this crate's own routes.
    pub async fn remove_route(&self, destination: Ipv4Net, route: RouteMessage) -> Result<(), Error> {
        self.handle.route().del(route).execute().await.map_err(failed(format!("remove the route {destination}")))
    }

    /// Makes sure of the VXLAN device, with its address; gives its index.
    pub async fn tunnel(&self, tunnel: &Tunnel) -> Result<u32, Error> {
        if self.index(tunnel.name).await?.is_none() {
            let message = LinkVxlan::new(tunnel.name, tunnel.network_identifier)
                .dev(tunnel.over.index)
                .local(tunnel.outer)
                .port(tunnel.port)
                .learning(false)
                .address(tunnel.hardware.to_vec())
                .mtu(tunnel.over.mtu.saturating_sub(VXLAN_OVERHEAD_BYTES))
                .build();
            let made = self.handle.link().add(message).execute().await;
            made.map_err(failed(format!("make the VXLAN device {}", tunnel.name)))?;
        }
        let index = self.index(tunnel.name).await?.ok_or_else(|| Error::NoLink(tunnel.name.into()))?;
        let hardware = LinkUnspec::new_with_index(index).address(tunnel.hardware.to_vec()).up().build();
        self.handle.link().change(hardware).execute().await.map_err(failed(format!("set up {}", tunnel.name)))?;
        let address = self.handle.address().add(index, IpAddr::V4(tunnel.inner), 32).replace().execute().await;
        address.map_err(failed(format!("give {} its address", tunnel.name)))?;
        Ok(index)
    }

    /// Makes another node known on the VXLAN device.
    pub async fn tunnel_peer(&self, index: u32, inner: Ipv4Addr, hardware: [u8; 6], outer: Ipv4Addr) -> Result<(), Error> {
        let neighbours = self.handle.neighbours();
        let neighbour = neighbours.add(index, IpAddr::V4(inner)).link_layer_address(&hardware).replace().execute().await;
        neighbour.map_err(failed(format!("add the neighbour {inner}")))?;
        let forward = neighbours
            .add_bridge(index, &hardware)
            .destination(IpAddr::V4(outer))
            .flags(NeighbourFlags::Own)
            .state(NeighbourState::Permanent)
            .replace()
            .execute()
            .await;
        forward.map_err(failed(format!("forward to {outer}")))
    }

    /// Adds an address to a link; one that is there already is left as it is.
    pub async fn address(&self, link: &str, address: Ipv4Addr, prefix_length: u8) -> Result<(), Error> {
        let index = self.index(link).await?.ok_or_else(|| Error::NoLink(link.into()))?;
        let added = self.handle.address().add(index, IpAddr::V4(address), prefix_length).replace().execute().await;
        added.map_err(failed(format!("add {address} to {link}")))
    }
}

/// What a VXLAN header and its carriers add to a packet over IPv4.
pub const VXLAN_OVERHEAD_BYTES: u32 = 50;
/// ENODEV
const NO_DEVICE: i32 = 19;

/// A link of this node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnLink {
    /// The kernel's index.
    pub index: u32,
    /// The length of its address' prefix.
    pub prefix_length: u8,
    /// Its greatest packet.
    pub mtu: u32,
}

/// A VXLAN device.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Its name.
    pub name: &'static str,
    /// VXLAN network identifier.
    pub network_identifier: u32,
    /// UDP port.
    pub port: u16,
    /// The link that carries it.
    pub over: OwnLink,
    /// This node's address.
    pub outer: Ipv4Addr,
    /// Its own address.
    pub inner: Ipv4Addr,
    /// Its own hardware address.
    pub hardware: [u8; 6],
}

/// Leads the range to the loopback link, with this source address: packets of the node's own processes to an address of the
/// range come as far as the output hook, where nftables sends them on, also on a node without a default route.
pub async fn route_to_loopback(range: Ipv4Net, source: Ipv4Addr) -> Result<(), Error> {
    let links = Links::open()?;
    let index = links.index("lo").await?.ok_or_else(|| Error::NoLink("lo".into()))?;
    let message = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(range.network(), range.prefix_len())
        .output_interface(index)
        .pref_source(source)
        .scope(RouteScope::Link)
        .protocol(RouteProtocol::Other(SERVICE_ROUTE_PROTOCOL))
        .build();
    links.handle.route().add(message).replace().execute().await.map_err(failed(format!("route {range} to lo")))
}

/// Sets a sysctl (a path below `/proc/sys`). Where that is not allowed, and the value is not there already, it says so.
pub fn set_sysctl(path: &str, value: &str) {
    let file = format!("/proc/sys/{path}");
    if std::fs::read_to_string(&file).is_ok_and(|known| known.trim() == value) {
        return;
    }
    if let Err(error) = std::fs::write(&file, value) {
        tracing::warn!(sysctl = path, value, %error, "a sysctl could not be set");
    }
}
