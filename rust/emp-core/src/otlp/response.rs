//! What OTLP destinations answer.

use super::wire::{Reader, WireError, for_each_field};
use crate::error::{CoreError, ErrorKind};

/// The partial success of an Export{Logs,Trace,Metrics}ServiceResponse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportResponse {
    /// Log records, spans or data points that were refused; never retried.
    pub rejected: u64,
    /// Why, or a warning where nothing was refused.
    pub message: String,
}

/// Reads a response; without `partial_success` nothing was rejected. Source: opentelemetry/proto/collector/*/v1, all three the same.
pub fn parse_export_response(data: &[u8]) -> Result<ExportResponse, CoreError> {
    const PARTIAL_SUCCESS: u32 = 1;
    const REJECTED: u32 = 1;
    const ERROR_MESSAGE: u32 = 2;
    let mut response = ExportResponse::default();
    for_each_field(Reader::new(data), |field| {
        if field.number != PARTIAL_SUCCESS {
            return Ok::<(), WireError>(());
        }
        for_each_field(field.message(), |field| {
            match field.number {
                // An int64: a negative count says nothing.
                REJECTED => response.rejected = field.scalar().and_then(|count| i64::try_from(count).ok()).unwrap_or(0) as u64,
                ERROR_MESSAGE => response.message = lossy(field.bytes()),
                _ => {}
            }
            Ok(())
        })
    })
    .map_err(|error| error.of_kind(ErrorKind::BodyInvalid))?;
    Ok(response)
}

/// The message of a google.rpc.Status; empty where the bytes are none.
pub fn parse_status(data: &[u8]) -> String {
    const MESSAGE: u32 = 2;
    let mut message = String::new();
    let read = for_each_field(Reader::new(data), |field| {
        if field.number == MESSAGE {
            message = lossy(field.bytes());
        }
        Ok::<(), WireError>(())
    });
    if read.is_ok() { message } else { String::new() }
}

/// How long a google.rpc.RetryInfo asks to wait, in nanoseconds; None where it says nothing usable: no delay, or none above 0.
pub fn parse_retry_info(data: &[u8]) -> Option<u64> {
    const RETRY_DELAY: u32 = 1;
    const SECONDS: u32 = 1;
    const NANOS: u32 = 2;
    let (mut seconds, mut nanos) = (0i64, 0i64);
    for_each_field(Reader::new(data), |field| {
        if field.number != RETRY_DELAY {
            return Ok::<(), WireError>(());
        }
        for_each_field(field.message(), |field| {
            // Both are signed and small; what does not fit is no delay.
            let value = field.scalar().unwrap_or(0) as i64;
            match field.number {
                SECONDS => seconds = value,
                NANOS => nanos = value,
                _ => {}
            }
            Ok(())
        })
    })
    .ok()?;
    let delay_ns = seconds.checked_mul(1_000_000_000)?.checked_add(nanos)?;
    u64::try_from(delay_ns).ok().filter(|delay_ns| *delay_ns > 0)
}

/// The same of the RetryInfo among the details of a google.rpc.Status.
pub fn parse_status_retry_info(data: &[u8]) -> Option<u64> {
    const DETAILS: u32 = 3;
    const TYPE_URL: u32 = 1;
    const VALUE: u32 = 2;
    let mut delay_ns = None;
    for_each_field(Reader::new(data), |field| {
        if field.number != DETAILS {
            return Ok::<(), WireError>(());
        }
        let (mut type_url, mut value) = (None, None);
        for_each_field(field.message(), |field| {
            match field.number {
                TYPE_URL => type_url = field.bytes(),
                VALUE => value = field.bytes(),
                _ => {}
            }
            Ok::<(), WireError>(())
        })?;
        if type_url.is_some_and(|url| url.ends_with(b"/google.rpc.RetryInfo")) {
            delay_ns = delay_ns.or(parse_retry_info(value.unwrap_or_default()));
        }
        Ok(())
    })
    .ok()?;
    delay_ns
}

fn lossy(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_export_response(&data);
            let _ = parse_status(&data);
            let _ = parse_retry_info(&data);
            let _ = parse_status_retry_info(&data);
        }
    }
}
