//! The Huffman code of field strings (RFC 7541 appendix B, used by RFC 9204 section 4.1.2).

/// Why a string is not Huffman code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HuffmanError {
    /// It contains the symbol EOS.
    #[error("EOS in a string")]
    EndOfString,
    /// It ends with more than 7 bits that are no symbol, or with other bits than ones.
    #[error("wrong padding")]
    Padding,
}

/// Bits of the code of each byte. The code is canonical: among codes of one length, bytes ascend; EOS comes last.
const BITS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

const BITS_MAX: usize = 30;

/// Codes of one length: the first of them, how many there are, and where their bytes stand in `ORDERED`.
#[derive(Clone, Copy)]
struct Length {
    first: u32,
    count: u32,
    at: usize,
}

const LENGTHS: [Length; BITS_MAX + 1] = {
    let mut lengths = [Length { first: 0, count: 0, at: 0 }; BITS_MAX + 1];
    let mut symbol = 0;
    while symbol < 256 {
        lengths[BITS[symbol] as usize].count += 1;
        symbol += 1;
    }
    let (mut code, mut at, mut bits) = (0, 0, 1);
    while bits <= BITS_MAX {
        lengths[bits].first = code;
        lengths[bits].at = at;
        code = (code + lengths[bits].count) << 1;
        at += lengths[bits].count as usize;
        bits += 1;
    }
    lengths
};

/// Bytes by code.
const ORDERED: [u8; 256] = {
    let (mut ordered, mut next) = ([0; 256], [0; BITS_MAX + 1]);
    let mut symbol = 0;
    while symbol < 256 {
        let bits = BITS[symbol] as usize;
        ordered[LENGTHS[bits].at + next[bits]] = symbol as u8;
        next[bits] += 1;
        symbol += 1;
    }
    ordered
};

const CODES: [u32; 256] = {
    let mut codes = [0; 256];
    let mut bits = 1;
    while bits <= BITS_MAX {
        let mut number = 0;
        while number < LENGTHS[bits].count {
            let symbol = ORDERED[LENGTHS[bits].at + number as usize];
            codes[symbol as usize] = LENGTHS[bits].first + number;
            number += 1;
        }
        bits += 1;
    }
    codes
};

/// Bits that are looked up at once: most of what stands in requests has codes of at most 8.
const SHORT_BITS: usize = 8;

/// Byte and bits of the code that these bits begin with; 0 bits where the code is longer.
static SHORT: [(u8, u8); 1 << SHORT_BITS] = {
    let mut short = [(0, 0); 1 << SHORT_BITS];
    let mut symbol = 0;
    while symbol < 256 {
        let bits = BITS[symbol] as usize;
        if bits <= SHORT_BITS {
            let first = (CODES[symbol] as usize) << (SHORT_BITS - bits);
            let mut tail = 0;
            while tail < 1 << (SHORT_BITS - bits) {
                short[first + tail] = (symbol as u8, bits as u8);
                tail += 1;
            }
        }
        symbol += 1;
    }
    short
};

/// Appends what `code` stands for to `text`: at most 8/5 of its length. O(length).
///
/// # Errors
/// [`HuffmanError`]; `text` has a part of it then.
pub fn decode(code: &[u8], text: &mut Vec<u8>) -> Result<(), HuffmanError> {
    text.reserve(code.len() * 8 / 5 + 1);
    let mut code = code.iter();
    // The bits to decode next, from the highest on; zeros behind them.
    let mut window = 0_u64;
    let mut held = 0_usize;
    loop {
        while held <= 56 {
            let Some(byte) = code.next() else { break };
            window |= u64::from(*byte) << (56 - held);
            held += 8;
        }
        let (byte, bits) = SHORT[(window >> (64 - SHORT_BITS)) as usize];
        let (byte, bits) = match bits {
            0 => long(window)?,
            bits => (byte, usize::from(bits)),
        };
        if bits > held {
            // Not a whole code: the padding, up to 7 ones.
            let ones = u64::MAX.checked_shl(64 - held as u32).unwrap_or(0);
            return if held < 8 && window == ones { Ok(()) } else { Err(HuffmanError::Padding) };
        }
        text.push(byte);
        window <<= bits;
        held -= bits;
    }
}

/// The code of more than [`SHORT_BITS`] bits at the front of `window`.
fn long(window: u64) -> Result<(u8, usize), HuffmanError> {
    for (bits, length) in LENGTHS.iter().enumerate().skip(SHORT_BITS + 1) {
        let code = (window >> (64 - bits)) as u32;
        if let Some(number) = code.checked_sub(length.first)
            && number < length.count
        {
            return Ok((ORDERED[length.at + number as usize], bits));
        }
    }
    // Every code but EOS is in the table.
    Err(HuffmanError::EndOfString)
}

/// Bytes of the code of `text`.
pub fn encoded_len(text: &[u8]) -> usize {
    text.iter().map(|byte| usize::from(BITS[usize::from(*byte)])).sum::<usize>().div_ceil(8)
}

/// Appends the code of `text`, padded with ones.
pub fn encode(text: &[u8], code: &mut Vec<u8>) {
    let mut window = 0_u64;
    let mut held = 0;
    for byte in text {
        let bits = BITS[usize::from(*byte)];
        // At most 7 + 30 bits are held.
        window = window << bits | u64::from(CODES[usize::from(*byte)]);
        held += bits;
        while held >= 8 {
            held -= 8;
            code.push((window >> held) as u8);
        }
    }
    if held > 0 {
        code.push((window << (8 - held)) as u8 | 0xff >> held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let hex: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pairs = hex.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    }

    fn decoded(code: &[u8]) -> Result<Vec<u8>, HuffmanError> {
        let mut text = Vec::new();
        decode(code, &mut text).map(|()| text)
    }

    #[test]
    fn the_examples_of_rfc_7541_appendix_c_come_out_both_ways() {
        let examples = [
            ("f1e3 c2e5 f23a 6ba0 ab90 f4ff", "www.example.com"),
            ("a8eb 1064 9cbf", "no-cache"),
            ("25a8 49e9 5ba9 7d7f", "custom-key"),
            ("25a8 49e9 5bb8 e8b4 bf", "custom-value"),
            ("6402", "302"),
            ("aec3 771a 4b", "private"),
            (
                "d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            ("9d29 ad17 1863 c78f 0b97 c8e9 ae82 ae43 d3", "https://www.example.com"),
            ("640e ff", "307"),
            (
                "d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff",
                "Mon, 21 Oct 2013 20:13:22 GMT",
            ),
            ("9bd9 ab", "gzip"),
            (
                "94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 \
                 65c0 03ed 4ee5 b106 3d50 07",
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ),
        ];
        for (hex, text) in examples {
            let mut code = Vec::new();
            encode(text.as_bytes(), &mut code);
            assert_eq!(code, bytes(hex), "{text}");
            assert_eq!(code.len(), encoded_len(text.as_bytes()));
            assert_eq!(decoded(&code).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn codes_of_the_appendix_are_these() {
        let some = [
            (0, 0x1ff8, 13),
            (10, 0x3fff_fffc, 30),
            (b' ', 0x14, 6),
            (b'0', 0, 5),
            (b'<', 0x7ffc, 15),
            (b'|', 0x7fc, 11),
            (b'}', 0x3ffd, 14),
            (127, 0xfff_fffc, 28),
            (249, 0xfff_fffe, 28),
            (255, 0x3ff_ffee, 26),
        ];
        for (byte, code, bits) in some {
            assert_eq!((CODES[usize::from(byte)], BITS[usize::from(byte)]), (code, bits), "{byte}");
        }
    }

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        let mut code = Vec::new();
        encode(&all, &mut code);
        assert_eq!(decoded(&code).unwrap(), all);
    }

    #[test]
    fn padding_is_up_to_seven_ones() {
        // '0' is 00000, 'a' is 00011.
        assert_eq!(decoded(&[0b0000_0111]).unwrap(), b"0");
        assert_eq!(decoded(&[0b0000_0110]), Err(HuffmanError::Padding));
        assert_eq!(decoded(&[0b0000_0111, 0xff]), Err(HuffmanError::Padding));
        assert_eq!(decoded(&[0xff]), Err(HuffmanError::Padding));
        assert_eq!(decoded(&[0xff, 0xff, 0xff]), Err(HuffmanError::Padding));
        assert_eq!(decoded(&[0xff; 4]), Err(HuffmanError::EndOfString));
        assert_eq!(decoded(&[0xff; 9]), Err(HuffmanError::EndOfString));
        assert_eq!(decoded(&[]).unwrap(), b"");
    }

    proptest! {
        #[test]
        fn strings_come_back(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut code = Vec::new();
            encode(&text, &mut code);
            prop_assert_eq!(code.len(), encoded_len(&text));
            prop_assert_eq!(decoded(&code).unwrap(), text);
        }

        #[test]
        fn what_decodes_is_what_would_be_encoded(code in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(text) = decoded(&code) {
                let mut again = Vec::new();
                encode(&text, &mut again);
                prop_assert_eq!(again, code);
            }
        }
    }
}
