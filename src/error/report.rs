//! What can go wrong while results are written for people to read.

/// Why a page, a picture or a table could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The drawing library refused.
    #[error("plot `{name}`: {reason}")]
    Plot {
        /// The plot.
        name: String,
        /// What the library said.
        reason: String,
    },
    /// A picture cannot be written as PNG.
    #[error("plot `{name}` as PNG: {reason}")]
    Png {
        /// The plot.
        name: String,
        /// What is in the way.
        reason: String,
    },
    /// The page's template failed.
    #[error("report page: {reason}")]
    Page {
        /// What the template engine said.
        reason: String,
    },
}

impl ReportError {
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            ReportError::Png { .. } => Some("the SVG beside it shows the same".into()),
            ReportError::Plot { .. } | ReportError::Page { .. } => None,
        }
    }
}
