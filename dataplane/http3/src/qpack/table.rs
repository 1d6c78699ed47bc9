//! The static table (RFC 9204 appendix A), as data and as ready names and values.

use http::{HeaderName, HeaderValue};

/// Entries of the table.
pub const LEN: u8 = 99;

macro_rules! table {
    (
        pseudo { $($p_index:literal $p_name:literal $p_value:literal)* }
        fields { $($index:literal $name:literal $value:literal)* }
    ) => {
        /// Names and values by index. The pseudo-header fields `:authority`, `:path`, `:method`, `:scheme` and
        /// `:status` are at 0, 1, 15 to 28 and 63 to 71.
        pub static TABLE: [(&str, &str); LEN as usize] = {
            let mut table = [("", ""); LEN as usize];
            $(table[$p_index] = ($p_name, $p_value);)*
            $(table[$index] = ($name, $value);)*
            table
        };

        /// The name of an entry that is not a pseudo-header field. Does not allocate.
        pub fn header_name(index: u8) -> Option<HeaderName> {
            match index {
                $($index => Some(const { HeaderName::from_static($name) }),)*
                _ => None,
            }
        }

        /// The value of an entry that is not a pseudo-header field. Does not allocate.
        pub fn header_value(index: u8) -> Option<HeaderValue> {
            match index {
                $($index => Some(const { HeaderValue::from_static($value) }),)*
                _ => None,
            }
        }
    };
}

table! {
    pseudo {
        0 ":authority" ""
        1 ":path" "/"
        15 ":method" "CONNECT"
        16 ":method" "DELETE"
        17 ":method" "GET"
        18 ":method" "HEAD"
        19 ":method" "OPTIONS"
        20 ":method" "POST"
        21 ":method" "PUT"
        22 ":scheme" "http"
        23 ":scheme" "https"
        24 ":status" "103"
        25 ":status" "200"
        26 ":status" "304"
        27 ":status" "404"
        28 ":status" "503"
        63 ":status" "100"
        64 ":status" "204"
        65 ":status" "206"
        66 ":status" "302"
        67 ":status" "400"
        68 ":status" "403"
        69 ":status" "421"
        70 ":status" "425"
        71 ":status" "500"
    }
    fields {
        2 "age" "0"
        3 "content-disposition" ""
        4 "content-length" "0"
        5 "cookie" ""
        6 "date" ""
        7 "etag" ""
        8 "if-modified-since" ""
        9 "if-none-match" ""
        10 "last-modified" ""
        11 "link" ""
        12 "location" ""
        13 "referer" ""
        14 "set-cookie" ""
        29 "accept" "*/*"
        30 "accept" "application/dns-message"
        31 "accept-encoding" "gzip, deflate, br"
        32 "accept-ranges" "bytes"
        33 "access-control-allow-headers" "cache-control"
        34 "access-control-allow-headers" "content-type"
        35 "access-control-allow-origin" "*"
        36 "cache-control" "max-age=0"
        37 "cache-control" "max-age=2592000"
        38 "cache-control" "max-age=604800"
        39 "cache-control" "no-cache"
        40 "cache-control" "no-store"
        41 "cache-control" "public, max-age=31536000"
        42 "content-encoding" "br"
        43 "content-encoding" "gzip"
        44 "content-type" "application/dns-message"
        45 "content-type" "application/javascript"
        46 "content-type" "application/json"
        47 "content-type" "application/x-www-form-urlencoded"
        48 "content-type" "image/gif"
        49 "content-type" "image/jpeg"
        50 "content-type" "image/png"
        51 "content-type" "text/css"
        52 "content-type" "text/html; charset=utf-8"
        53 "content-type" "text/plain"
        54 "content-type" "text/plain;charset=utf-8"
        55 "range" "bytes=0-"
        56 "strict-transport-security" "max-age=31536000"
        57 "strict-transport-security" "max-age=31536000; includesubdomains"
        58 "strict-transport-security" "max-age=31536000; includesubdomains; preload"
        59 "vary" "accept-encoding"
        60 "vary" "origin"
        61 "x-content-type-options" "nosniff"
        62 "x-xss-protection" "1; mode=block"
        72 "accept-language" ""
        73 "access-control-allow-credentials" "FALSE"
        74 "access-control-allow-credentials" "TRUE"
        75 "access-control-allow-headers" "*"
        76 "access-control-allow-methods" "get"
        77 "access-control-allow-methods" "get, post, options"
        78 "access-control-allow-methods" "options"
        79 "access-control-expose-headers" "content-length"
        80 "access-control-request-headers" "content-type"
        81 "access-control-request-method" "get"
        82 "access-control-request-method" "post"
        83 "alt-svc" "clear"
        84 "authorization" ""
        85 "content-security-policy" "script-src 'none'; object-src 'none'; base-uri 'none'"
        86 "early-data" "1"
        87 "expect-ct" ""
        88 "forwarded" ""
        89 "if-range" ""
        90 "origin" ""
        91 "purpose" "prefetch"
        92 "server" ""
        93 "timing-allow-origin" "*"
        94 "upgrade-insecure-requests" "1"
        95 "user-agent" ""
        96 "x-forwarded-for" ""
        97 "x-frame-options" "deny"
        98 "x-frame-options" "sameorigin"
    }
}

/// The first entry with this name (lower case, no pseudo-header field).
pub fn find_name(name: &str) -> Option<u8> {
    // By length first: a name is then compared with a few others only.
    let index = match name.len() {
        3 => match name {
            "age" => 2,
            _ => return None,
        },
        4 => match name {
            "date" => 6,
            "etag" => 7,
            "link" => 11,
            "vary" => 59,
            _ => return None,
        },
        5 => match name {
            "range" => 55,
            _ => return None,
        },
        6 => match name {
            "cookie" => 5,
            "accept" => 29,
            "origin" => 90,
            "server" => 92,
            _ => return None,
        },
        7 => match name {
            "referer" => 13,
            "alt-svc" => 83,
            "purpose" => 91,
            _ => return None,
        },
        8 => match name {
            "location" => 12,
            "if-range" => 89,
            _ => return None,
        },
        9 => match name {
            "expect-ct" => 87,
            "forwarded" => 88,
            _ => return None,
        },
        10 => match name {
            "set-cookie" => 14,
            "early-data" => 86,
            "user-agent" => 95,
            _ => return None,
        },
        12 => match name {
            "content-type" => 44,
            _ => return None,
        },
        13 => match name {
            "if-none-match" => 9,
            "last-modified" => 10,
            "accept-ranges" => 32,
            "cache-control" => 36,
            "authorization" => 84,
            _ => return None,
        },
        14 => match name {
            "content-length" => 4,
            _ => return None,
        },
        15 => match name {
            "accept-encoding" => 31,
            "accept-language" => 72,
            "x-forwarded-for" => 96,
            "x-frame-options" => 97,
            _ => return None,
        },
        16 => match name {
            "content-encoding" => 42,
            "x-xss-protection" => 62,
            _ => return None,
        },
        17 => match name {
            "if-modified-since" => 8,
            _ => return None,
        },
        19 => match name {
            "content-disposition" => 3,
            "timing-allow-origin" => 93,
            _ => return None,
        },
        22 => match name {
            "x-content-type-options" => 61,
            _ => return None,
        },
        23 => match name {
            "content-security-policy" => 85,
            _ => return None,
        },
        25 => match name {
            "strict-transport-security" => 56,
            "upgrade-insecure-requests" => 94,
            _ => return None,
        },
        27 => match name {
            "access-control-allow-origin" => 35,
            _ => return None,
        },
        28 => match name {
            "access-control-allow-headers" => 33,
            "access-control-allow-methods" => 76,
            _ => return None,
        },
        29 => match name {
            "access-control-expose-headers" => 79,
            "access-control-request-method" => 81,
            _ => return None,
        },
        30 => match name {
            "access-control-request-headers" => 80,
            _ => return None,
        },
        32 => match name {
            "access-control-allow-credentials" => 73,
            _ => return None,
        },
        _ => return None,
    };
    Some(index)
}

/// The entry with this name and value, where `name` is the first entry with the name.
pub fn find_value(name: u8, value: &[u8]) -> Option<u8> {
    let text = TABLE.get(usize::from(name))?.0;
    let same = |index: &u8| TABLE[usize::from(*index)].0 == text;
    (name..LEN).take_while(same).find(|index| TABLE[usize::from(*index)].1.as_bytes() == value)
}

/// The entry of a status, if it has one.
pub const fn find_status(status: u16) -> Option<u8> {
    Some(match status {
        103 => 24,
        200 => 25,
        304 => 26,
        404 => 27,
        503 => 28,
        100 => 63,
        204 => 64,
        206 => 65,
        302 => 66,
        400 => 67,
        403 => 68,
        421 => 69,
        425 => 70,
        500 => 71,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_under_its_name_and_value() {
        for (index, (name, value)) in (0..LEN).zip(TABLE) {
            assert!(!name.is_empty());
            match header_name(index) {
                Some(header) => {
                    assert_eq!(header.as_str(), name);
                    assert_eq!(header_value(index).unwrap().as_bytes(), value.as_bytes());
                    let first = find_name(name).unwrap();
                    assert!(first <= index && TABLE[usize::from(first)].0 == name);
                    // Entries with a name that stands further up are not looked for.
                    if let Some(found) = find_value(first, value.as_bytes()) {
                        assert_eq!(TABLE[usize::from(found)], (name, value));
                    } else {
                        assert!(index > first + 1, "{index}");
                    }
                }
                None => {
                    assert!(name.starts_with(':'));
                    if name == ":status" {
                        assert_eq!(find_status(value.parse().unwrap()), Some(index));
                    }
                }
            }
        }
        assert_eq!(find_name("x-unknown"), None);
        assert_eq!(header_name(LEN), None);
    }
}
