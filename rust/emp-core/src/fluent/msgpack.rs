//! The few functions that write msgpack, each value in its shortest form.

/// Appends nil.
pub fn put_nil(out: &mut Vec<u8>) {
    out.push(0xc0);
}

/// Appends a bool.
pub fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { 0xc3 } else { 0xc2 });
}

/// Appends an integer.
pub fn put_int(out: &mut Vec<u8>, value: i64) {
    match value {
        -32..=127 => out.push(value as u8),
        128..=0xff => out.extend_from_slice(&[0xcc, value as u8]),
        0x100..=0xffff => put_wide(out, 0xcd, &(value as u16).to_be_bytes()),
        0x1_0000..=0xffff_ffff => put_wide(out, 0xce, &(value as u32).to_be_bytes()),
        0x1_0000_0000.. => put_wide(out, 0xcf, &(value as u64).to_be_bytes()),
        -0x80..-32 => put_wide(out, 0xd0, &(value as i8).to_be_bytes()),
        -0x8000..-0x80 => put_wide(out, 0xd1, &(value as i16).to_be_bytes()),
        -0x8000_0000..-0x8000 => put_wide(out, 0xd2, &(value as i32).to_be_bytes()),
        _ => put_wide(out, 0xd3, &value.to_be_bytes()),
    }
}

/// Appends a double.
pub fn put_f64(out: &mut Vec<u8>, value: f64) {
    put_wide(out, 0xcb, &value.to_bits().to_be_bytes());
}

/// Appends a string; the bytes go out as they are.
pub fn put_str(out: &mut Vec<u8>, text: &[u8]) {
    match text.len() {
        len @ 0..=31 => out.push(0xa0 | len as u8),
        len @ 32..=0xff => out.extend_from_slice(&[0xd9, len as u8]),
        len @ 0x100..=0xffff => put_wide(out, 0xda, &(len as u16).to_be_bytes()),
        len => put_wide(out, 0xdb, &(len as u32).to_be_bytes()),
    }
    out.extend_from_slice(text);
}

/// Appends the head of a bin; its bytes come next.
pub fn put_bin_head(out: &mut Vec<u8>, len: usize) {
    match len {
        0..=0xff => out.extend_from_slice(&[0xc4, len as u8]),
        0x100..=0xffff => put_wide(out, 0xc5, &(len as u16).to_be_bytes()),
        _ => put_wide(out, 0xc6, &(len as u32).to_be_bytes()),
    }
}

/// Appends a bin.
pub fn put_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    put_bin_head(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Appends the head of an array; its elements come next.
pub fn put_array_head(out: &mut Vec<u8>, len: usize) {
    match len {
        0..=15 => out.push(0x90 | len as u8),
        16..=0xffff => put_wide(out, 0xdc, &(len as u16).to_be_bytes()),
        _ => put_wide(out, 0xdd, &(len as u32).to_be_bytes()),
    }
}

/// Appends the head of a map; its pairs come next.
pub fn put_map_head(out: &mut Vec<u8>, len: usize) {
    match len {
        0..=15 => out.push(0x80 | len as u8),
        16..=0xffff => put_wide(out, 0xde, &(len as u16).to_be_bytes()),
        _ => put_wide(out, 0xdf, &(len as u32).to_be_bytes()),
    }
}

/// Appends Fluent's EventTime.
pub fn put_event_time(out: &mut Vec<u8>, seconds: u32, nanoseconds: u32) {
    out.extend_from_slice(&[0xd7, 0]);
    out.extend_from_slice(&seconds.to_be_bytes());
    out.extend_from_slice(&nanoseconds.to_be_bytes());
}

fn put_wide(out: &mut Vec<u8>, head: u8, bytes: &[u8]) {
    out.push(head);
    out.extend_from_slice(bytes);
}
