//! Which kind of network an address belongs to, and to which of them an upstream may send us.
//!
//! Pure. It is asked about the address that a connection is really made to, never about a name:
//! a name can be made to point anywhere. It must never let an upstream choose a host of our own
//! networks (server-side request forgery).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kind of network that an address belongs to. From the special-purpose registries of RFC 6890
/// and the addresses at which clouds serve credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressClass {
    /// The internet.
    Public,
    /// A site's own: RFC 1918, carrier-grade NAT (RFC 6598), unique local (fc00::/7).
    Private,
    /// 169.254.0.0/16 and fe80::/10.
    LinkLocal,
    /// 127.0.0.0/8 and ::1.
    Loopback,
    /// Where machines get their credentials from.
    Metadata,
    /// Unspecified, multicast, broadcast, documentation, reserved: nothing to connect to.
    Unusable,
}

impl AddressClass {
    /// The class in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::LinkLocal => "link-local",
            Self::Loopback => "loopback",
            Self::Metadata => "metadata",
            Self::Unusable => "unusable",
        }
    }
}

/// Tells the class of an address: [`classify`], or a test's own.
pub type Classifier = fn(IpAddr) -> AddressClass;

/// Addresses at which clouds serve credentials to whoever asks. Two of them lie in ranges that
/// would otherwise be taken for a site's own.
const METADATA_V4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254), // most of them
    Ipv4Addr::new(169, 254, 170, 2),   // AWS, task credentials
    Ipv4Addr::new(100, 100, 100, 200), // Alibaba
    Ipv4Addr::new(192, 0, 0, 192),     // Oracle, the classic address
];

/// The same of IPv6: AWS.
const METADATA_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254),
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0023),
];

/// The class of an address. An IPv6 address that carries an IPv4 one (mapped, compatible, NAT64,
/// 6to4) has the class of that one.
pub fn classify(address: IpAddr) -> AddressClass {
    match address {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => match embedded_v4(address) {
            Some(address) => classify_v4(address),
            None => classify_v6(address),
        },
    }
}

fn classify_v4(address: Ipv4Addr) -> AddressClass {
    if METADATA_V4.contains(&address) {
        return AddressClass::Metadata;
    }
    match address.octets() {
        [127, ..] => AddressClass::Loopback,
        [169, 254, ..] => AddressClass::LinkLocal,
        [10, ..] | [192, 168, ..] => AddressClass::Private,
        [172, second, ..] if (16..32).contains(&second) => AddressClass::Private,
        [100, second, ..] if (64..128).contains(&second) => AddressClass::Private,
        // This network; protocol assignments; documentation; benchmarks; multicast and reserved.
        [0, ..]
        | [192, 0, 0, _]
        | [192, 0, 2, _]
        | [192, 88, 99, _]
        | [198, 18..=19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [224..=255, ..] => AddressClass::Unusable,
        _ => AddressClass::Public,
    }
}

/// The IPv4 address that an IPv6 address stands for, if it does.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let low = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        // ::1 and :: are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0..=1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, a, b] => low(a, b), // compatible, mapped
        [0, 0, 0, 0, 0xffff, 0, a, b] => low(a, b),     // translated (RFC 2765)
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] => low(a, b),  // NAT64 (RFC 6052)
        [0x2002, a, b, ..] => low(a, b),                // 6to4
        _ => None,
    }
}

fn classify_v6(address: Ipv6Addr) -> AddressClass {
    if METADATA_V6.contains(&address) {
        return AddressClass::Metadata;
    }
    if address.is_loopback() {
        return AddressClass::Loopback;
    }
    match address.segments() {
        [first, ..] if first & 0xfe00 == 0xfc00 => AddressClass::Private,
        [first, ..] if first & 0xffc0 == 0xfe80 => AddressClass::LinkLocal,
        // Site-local, deprecated, and still what it says.
        [first, ..] if first & 0xffc0 == 0xfec0 => AddressClass::Private,
        // NAT64 for local use (RFC 8215) leads to wherever a site says.
        [0x64, 0xff9b, 1, ..] => AddressClass::Private,
        // Documentation; Teredo; ORCHID and the other protocol assignments.
        [0x2001, 0x0db8, ..] | [0x2001, 0x0000..=0x01ff, ..] => AddressClass::Unusable,
        // Global unicast is 2000::/3; nothing else is given out.
        [first, ..] if first & 0xe000 == 0x2000 => AddressClass::Public,
        _ => AddressClass::Unusable,
    }
}

/// How far an upstream may send us: the class of the address at which the upstream itself answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// The host that the operator configured: wherever it is.
    Configured,
    /// A host that the upstream named, the upstream being on the internet.
    Public,
    /// A host that the upstream named, the upstream being in this class of network itself.
    Also(AddressClass),
}

impl Reach {
    /// How far an upstream that answered from an address of this class may send us.
    pub const fn of_upstream(class: AddressClass) -> Self {
        match class {
            AddressClass::Private | AddressClass::LinkLocal | AddressClass::Loopback => {
                Self::Also(class)
            }
            AddressClass::Public | AddressClass::Metadata | AddressClass::Unusable => Self::Public,
        }
    }

    /// Whether a connection to an address of this class may be made. An upstream on a site's own
    /// network may send us to its neighbours there, not to our loopback, and nobody may send us to
    /// where credentials are served.
    pub fn allows(self, class: AddressClass) -> bool {
        match self {
            Self::Configured => true,
            Self::Public => class == AddressClass::Public,
            Self::Also(own) => class == AddressClass::Public || class == own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn class(text: &str) -> AddressClass {
        classify(text.parse().unwrap())
    }

    #[test]
    fn addresses_that_an_upstream_must_not_choose_are_known() {
        for (text, expected) in [
            ("8.8.8.8", AddressClass::Public),
            ("2606:4700::1111", AddressClass::Public),
            ("10.0.0.1", AddressClass::Private),
            ("172.16.0.1", AddressClass::Private),
            ("172.31.255.255", AddressClass::Private),
            ("172.32.0.1", AddressClass::Public),
            ("192.168.1.1", AddressClass::Private),
            ("100.64.0.1", AddressClass::Private),
            ("100.128.0.1", AddressClass::Public),
            ("fc00::1", AddressClass::Private),
            ("fdff::1", AddressClass::Private),
            ("fec0::1", AddressClass::Private),
            ("64:ff9b:1::1", AddressClass::Private),
            ("169.254.0.1", AddressClass::LinkLocal),
            ("fe80::1", AddressClass::LinkLocal),
            ("febf::1", AddressClass::LinkLocal),
            ("127.0.0.1", AddressClass::Loopback),
            ("127.255.255.255", AddressClass::Loopback),
            ("::1", AddressClass::Loopback),
            ("169.254.169.254", AddressClass::Metadata),
            ("169.254.170.2", AddressClass::Metadata),
            ("100.100.100.200", AddressClass::Metadata),
            ("fd00:ec2::254", AddressClass::Metadata),
            ("0.0.0.0", AddressClass::Unusable),
            ("0.1.2.3", AddressClass::Unusable),
            ("::", AddressClass::Unusable),
            ("224.0.0.1", AddressClass::Unusable),
            ("239.255.255.250", AddressClass::Unusable),
            ("255.255.255.255", AddressClass::Unusable),
            ("240.0.0.1", AddressClass::Unusable),
            ("192.0.2.1", AddressClass::Unusable),
            ("198.18.0.1", AddressClass::Unusable),
            ("ff02::1", AddressClass::Unusable),
            ("2001:db8::1", AddressClass::Unusable),
            ("2001::1", AddressClass::Unusable),
            ("4000::1", AddressClass::Unusable),
        ] {
            assert_eq!(class(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_ipv4_address_in_an_ipv6_coat_is_judged_by_what_it_is(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from(bits);
            // Of the compatible form, ::0 and ::1 are addresses of their own.
            let [a, b, c, d] = v4.octets();
            let high = u16::from_be_bytes([a, b]);
            let low = u16::from_be_bytes([c, d]);
            let expected = classify_v4(v4);
            let coats = [
                v4.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
            ];
            for coat in coats {
                prop_assert_eq!(classify(IpAddr::V6(coat)), expected, "{}", coat);
            }
        }
    }

    #[test]
    fn who_is_on_the_internet_may_only_send_us_there() {
        let reach = Reach::of_upstream(AddressClass::Public);
        assert!(reach.allows(AddressClass::Public));
        for class in [
            AddressClass::Private,
            AddressClass::LinkLocal,
            AddressClass::Loopback,
            AddressClass::Metadata,
            AddressClass::Unusable,
        ] {
            assert!(!reach.allows(class), "{class:?}");
        }
    }

    #[test]
    fn a_neighbour_may_send_us_to_its_neighbours_and_not_to_ourselves() {
        let reach = Reach::of_upstream(AddressClass::Private);
        assert!(reach.allows(AddressClass::Private) && reach.allows(AddressClass::Public));
        assert!(!reach.allows(AddressClass::Loopback));
        assert!(!reach.allows(AddressClass::Metadata));
        let reach = Reach::of_upstream(AddressClass::LinkLocal);
        assert!(!reach.allows(AddressClass::Metadata), "it is not link-local that counts here");
    }

    #[test]
    fn nobody_becomes_a_neighbour_of_the_metadata_service() {
        assert_eq!(Reach::of_upstream(AddressClass::Metadata), Reach::Public);
        assert_eq!(Reach::of_upstream(AddressClass::Unusable), Reach::Public);
    }
}
