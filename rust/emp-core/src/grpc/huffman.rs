//! The Huffman code of HPACK (RFC 7541, Appendix B). It is canonical, so the lengths of its codes say all of it.

const SYMBOLS: usize = 257;
const END_OF_STRING: u16 = 256;
const MOST_BITS: usize = 30;

#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

struct Table {
    first_code: [u32; MOST_BITS + 1],
    first_symbol: [u16; MOST_BITS + 1],
    count: [u16; MOST_BITS + 1],
    symbols: [u16; SYMBOLS],
}

const TABLE: Table = table();

const fn table() -> Table {
    let mut table =
        Table { first_code: [0; MOST_BITS + 1], first_symbol: [0; MOST_BITS + 1], count: [0; MOST_BITS + 1], symbols: [0; SYMBOLS] };
    let (mut code, mut placed, mut bits) = (0_u32, 0, 1);
    while bits <= MOST_BITS {
        code <<= 1;
        table.first_code[bits] = code;
        table.first_symbol[bits] = placed as u16;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == bits {
                table.symbols[placed] = symbol as u16;
                placed += 1;
                code += 1;
                table.count[bits] += 1;
            }
            symbol += 1;
        }
        bits += 1;
    }
    table
}

/// Appends the decoded string; None where it is no code: an end mark inside, or a padding that is none. At most 8/5 of what it was.
pub(super) fn decode(encoded: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (mut code, mut bits) = (0_u32, 0_usize);
    for byte in encoded {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            bits += 1;
            if bits > MOST_BITS {
                return None;
            }
            let place = code.wrapping_sub(TABLE.first_code[bits]);
            if place < u32::from(TABLE.count[bits]) {
                let symbol = TABLE.symbols[usize::from(TABLE.first_symbol[bits]) + place as usize];
                if symbol == END_OF_STRING {
                    return None;
                }
                out.push(symbol as u8);
                (code, bits) = (0, 0);
            }
        }
    }
    (bits < 8 && code == (1 << bits) - 1).then_some(())
}

/// The code of a string, for tests.
#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let (mut out, mut held, mut held_bits) = (Vec::new(), 0_u64, 0_u32);
    for &byte in text {
        let bits = usize::from(LENGTHS[usize::from(byte)]);
        let first = usize::from(TABLE.first_symbol[bits]);
        let place = (first..).take_while(|&at| TABLE.symbols[at] != u16::from(byte)).count();
        held = held << bits | u64::from(TABLE.first_code[bits] + place as u32);
        held_bits += bits as u32;
        while held_bits >= 8 {
            held_bits -= 8;
            out.push((held >> held_bits) as u8);
        }
    }
    if held_bits > 0 {
        out.push((held << (8 - held_bits)) as u8 | (0xFF >> held_bits));
    }
    out
}
