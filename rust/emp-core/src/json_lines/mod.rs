//! Rows as lines of JSON: logs in the fleet's standardised form ([`log`]), spans and metrics as OTLP JSON ([`otlp`]).

pub mod log;
pub mod otlp;
pub mod text;
pub mod value;

use crate::batch::{Batch, Signal};
use crate::error::{CoreError, ErrorKind};

/// One line a row, each ended by a newline.
pub fn json_lines(batch: &Batch) -> Result<Vec<u8>, CoreError> {
    let written = match batch.signal {
        Signal::Logs => log::lines(batch),
        Signal::Traces | Signal::Metrics => otlp::lines(batch),
    };
    written.map_err(|error| error.of_kind(ErrorKind::BodyInvalid))
}
