//! Models of the Hugging Face hub: found in its cache, fetched through its client library where that is allowed, and checked against their hashes.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::events::Listener;
use super::expand::{HubModel, first_shards};
use crate::error::{Error, PipelineError, Result};
use crate::util::progress::Progress;

/// What tells in a name that weights are not quantised.
const FLOATS: [&str; 3] = ["f16", "bf16", "f32"];

/// The way to the hub.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The server; `None` for the usual one.
    pub endpoint: Option<String>,
    /// The token of private and gated repositories.
    pub token: Option<String>,
    /// The folder of the cache that all tools of the hub share.
    pub cache: PathBuf,
    /// Whether nothing may be fetched.
    pub offline: bool,
}

impl Hub {
    /// The model in the cache, with all of its shards; `None` if something is missing.
    pub fn locate(&self, model: &HubModel) -> Option<PathBuf> {
        let folder = self.snapshot(model)?;
        let mut names = Vec::new();
        list(&folder, Path::new(""), &mut names);
        let file = choose(model, &names).ok()?;
        shards(&file).iter().all(|shard| folder.join(shard).exists()).then(|| folder.join(file))
    }

    /// The folder of the revision in the cache.
    fn snapshot(&self, model: &HubModel) -> Option<PathBuf> {
        let repository = self.cache.join(format!("models--{}", model.repository.replace('/', "--")));
        let named = fs::read_to_string(repository.join("refs").join(&model.revision)).ok();
        let commit = named.unwrap_or_else(|| model.revision.clone());
        Some(repository.join("snapshots").join(commit.trim())).filter(|folder| folder.is_dir())
    }

    /// The model in the cache, fetched first if it is not there.
    ///
    /// # Errors
    /// [`PipelineError::HubMissing`] where nothing may be fetched, [`PipelineError::Hub`] for what goes wrong on the way,
    /// [`Error::Interrupted`]; what was fetched until then is kept.
    pub fn get(&self, model: &HubModel, listener: &dyn Listener, progress: &dyn Progress) -> Result<PathBuf> {
        if let Some(found) = self.locate(model) {
            return Ok(found);
        }
        if self.offline {
            return Err(self.missing(model, "nothing may be fetched (--offline)"));
        }
        client::fetch(self, model, listener, progress)
    }

    fn missing(&self, model: &HubModel, why: &'static str) -> Error {
        let HubModel { repository, revision, file } = model.clone();
        PipelineError::HubMissing { repository, revision, missing: file, cache: self.cache.clone(), why }.into()
    }
}

/// The names of the files of a folder and of those in it.
fn list(root: &Path, inside: &Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(root.join(inside)).into_iter().flatten().flatten() {
        let path = inside.join(entry.file_name());
        if root.join(&path).is_dir() {
            list(root, &path, names);
        } else {
            names.push(path.to_string_lossy().into_owned());
        }
    }
    names.sort();
}

/// The one model among the files of a repository that is asked for.
fn choose(model: &HubModel, names: &[String]) -> Result<String> {
    let wrong =
        |problem: String| PipelineError::Hub { repository: model.repository.clone(), problem, transient: false };
    let pattern = glob::Pattern::new(&model.file).map_err(|error| wrong(format!("`{}`: {error}", model.file)))?;
    let fits = |name: &&String| pattern.matches(name) || **name == model.file;
    let found = first_shards(names.iter().filter(fits).map(PathBuf::from).collect());
    let is_float = |path: &&PathBuf| {
        let name = path.to_string_lossy().to_ascii_lowercase();
        FLOATS.iter().any(|float| name.contains(float))
    };
    let floats: Vec<PathBuf> = found.iter().filter(is_float).cloned().collect();
    // A name alone means that file; a pattern means weights that are not quantised, if there are any.
    let found = if found.len() > 1 && !floats.is_empty() { floats } else { found };
    match &found[..] {
        [] => Err(wrong(format!("no file matches `{}`", model.file)).into()),
        [one] if is_inside(one) => Ok(one.to_string_lossy().into_owned()),
        [one] => Err(wrong(format!("the name `{}` leads out of the repository", one.display())).into()),
        several => {
            let names: Vec<_> = several.iter().map(|path| path.display().to_string()).collect();
            Err(wrong(format!("`{}` matches {}; say which with `file`", model.file, names.join(", "))).into())
        }
    }
}

fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// All shards of a model, by the name of one.
fn shards(file: &str) -> Vec<String> {
    let parts = || {
        let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (base, index) = rest.rsplit_once('-')?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        let count = Some(count).filter(|count| digits(count) && digits(index))?;
        let all: usize = count.parse().ok()?;
        Some((1..=all).map(|index| format!("{base}-{index:05}-of-{count}.gguf")).collect())
    };
    parts().unwrap_or_else(|| vec![file.to_owned()])
}

#[cfg(feature = "hub")]
mod client {
    use std::fs::File;
    use std::io::Read;
    use std::path::{Path, PathBuf};
    use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
    use std::time::Duration;

    use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
    use hf_hub::{Cache, Repo, RepoType};
    use sha2::{Digest, Sha256};

    use super::{Hub, HubModel, choose, shards};
    use crate::error::{Error, PipelineError, Result};
    use crate::pipeline::events::{Event, Listener};
    use crate::util::hash::hex;
    use crate::util::progress::Progress;

    /// How often an interruption is looked for while bytes come.
    const GLANCE: Duration = Duration::from_millis(50);
    /// Tries of the client library to continue a connection that broke.
    const CONTINUED: usize = 3;
    /// Bytes between two reports.
    const REPORT: u64 = 8 << 20;

    /// What the thread that fetches says.
    enum Said {
        Bytes { file: String, done: u64, total: u64 },
        Done(Box<Result<PathBuf>>),
    }

    /// Fetches on a thread of its own: the client library cannot be interrupted, but the program can end without it.
    pub(super) fn fetch(
        hub: &Hub,
        model: &HubModel,
        listener: &dyn Listener,
        progress: &dyn Progress,
    ) -> Result<PathBuf> {
        let (sender, receiver) = channel();
        let (hub, wanted) = (hub.clone(), model.clone());
        std::thread::spawn(move || {
            let result = all(&hub, &wanted, &sender);
            let _ = sender.send(Said::Done(Box::new(result)));
        });
        listen(&receiver, model, listener, progress)
    }

    fn listen(
        receiver: &Receiver<Said>,
        model: &HubModel,
        listener: &dyn Listener,
        progress: &dyn Progress,
    ) -> Result<PathBuf> {
        loop {
            match receiver.recv_timeout(GLANCE) {
                Ok(Said::Bytes { file, done, total }) => {
                    listener.hear(&Event::Fetch { repository: model.repository.clone(), file, done, total });
                }
                Ok(Said::Done(result)) => return *result,
                Err(RecvTimeoutError::Timeout) if progress.interrupted() => return Err(Error::Interrupted),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(refused(model, "the client library gave up", true));
                }
            }
        }
    }

    fn refused(model: &HubModel, problem: &str, transient: bool) -> Error {
        let (repository, problem) = (model.repository.clone(), problem.to_owned());
        PipelineError::Hub { repository, problem, transient }.into()
    }

    fn all(hub: &Hub, model: &HubModel, sender: &Sender<Said>) -> Result<PathBuf> {
        let failed = |error: &ApiError| refused(model, &error.to_string(), is_transient(error));
        let mut builder = ApiBuilder::from_cache(Cache::new(hub.cache.clone())).with_progress(false);
        builder = builder.with_retries(CONTINUED);
        if let Some(endpoint) = &hub.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        if hub.token.is_some() {
            builder = builder.with_token(hub.token.clone());
        }
        let api = builder.build().map_err(|error| failed(&error))?;
        let repository =
            api.repo(Repo::with_revision(model.repository.clone(), RepoType::Model, model.revision.clone()));
        let info = repository.info().map_err(|error| failed(&error))?;
        let names: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let first = choose(model, &names)?;
        let mut found = None;
        for shard in shards(&first) {
            let path = one(&repository, model, &shard, sender)?;
            if shard == first {
                found = Some(path);
            }
        }
        found.ok_or_else(|| refused(model, "the file is not among its own shards", false))
    }

    fn one(repository: &ApiRepo, model: &HubModel, file: &str, sender: &Sender<Said>) -> Result<PathBuf> {
        let teller = Teller { file: file.to_owned(), done: 0, told: 0, total: 0, sender: sender.clone() };
        let path = repository
            .download_with_progress(file, teller)
            .map_err(|error| refused(model, &format!("{file}: {error}"), is_transient(&error)))?;
        check(&path, model, file)?;
        Ok(path)
    }

    /// Compares a file with its name among the blobs: of large files that is the SHA-256 of what the hub has.
    fn check(path: &Path, model: &HubModel, file: &str) -> Result<()> {
        let blob = path.canonicalize().map_err(Error::io(path, "open"))?;
        let expected = blob.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if expected.len() != 64 || !expected.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(()); // a small file, which has no such hash
        }
        let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
        let mut opened = File::open(&blob).map_err(Error::io(&blob, "open"))?;
        loop {
            match opened.read(&mut piece).map_err(Error::io(&blob, "read"))? {
                0 => break,
                read => hash.update(&piece[..read]),
            }
        }
        let found = hex(&hash.finalize());
        if found == expected {
            return Ok(());
        }
        // Neither may be taken for the model by anybody.
        let _ = (std::fs::remove_file(path), std::fs::remove_file(&blob));
        Err(refused(model, &format!("{file}: SHA-256 is {found}, expected {expected}; it was removed"), true))
    }

    fn is_transient(error: &ApiError) -> bool {
        match error {
            ApiError::RequestError(error) => match &**error {
                ureq::Error::StatusCode(status) => matches!(status, 408 | 429 | 500..),
                ureq::Error::BadUri(_) => false,
                _ => true,
            },
            ApiError::TooManyRetries(_) | ApiError::LockAcquisition(_) | ApiError::IoError(_) => true,
            _ => false,
        }
    }

    /// Tells how many bytes there are.
    struct Teller {
        file: String,
        done: u64,
        told: u64,
        total: u64,
        sender: Sender<Said>,
    }

    impl Teller {
        fn tell(&mut self) {
            self.told = self.done;
            let _ = self.sender.send(Said::Bytes { file: self.file.clone(), done: self.done, total: self.total });
        }
    }

    impl hf_hub::api::Progress for Teller {
        fn init(&mut self, size: usize, _filename: &str) {
            (self.done, self.total) = (0, size as u64);
        }

        fn update(&mut self, size: usize) {
            self.done += size as u64;
            if self.done - self.told.min(self.done) >= REPORT {
                self.tell();
            }
        }

        fn finish(&mut self) {
            self.tell();
        }
    }
}

#[cfg(not(feature = "hub"))]
mod client {
    use super::{Hub, HubModel, Listener, PathBuf, Progress, Result};

    pub(super) fn fetch(hub: &Hub, model: &HubModel, _: &dyn Listener, _: &dyn Progress) -> Result<PathBuf> {
        Err(hub.missing(model, "this build cannot fetch (feature `hub`)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(file: &str, names: &[&str]) -> Result<String> {
        let model = HubModel { repository: "own/m".into(), revision: "main".into(), file: file.into() };
        choose(&model, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn one_model_is_chosen_or_none() {
        let names = ["README.md", "m-Q4_K.gguf", "m-f16-00001-of-00002.gguf", "m-f16-00002-of-00002.gguf"];
        assert_eq!(chosen("*.gguf", &names).unwrap(), "m-f16-00001-of-00002.gguf");
        assert_eq!(chosen("m-Q4_K.gguf", &names).unwrap(), "m-Q4_K.gguf");
        assert_eq!(chosen("*.gguf", &["m.gguf"]).unwrap(), "m.gguf");
        let error = |file: &str, names: &[&str]| chosen(file, names).unwrap_err().to_string();
        assert_eq!(error("*.bin", &names), "hf:own/m: no file matches `*.bin`");
        let two = error("*.gguf", &["a-f16.gguf", "b-bf16.gguf"]);
        assert_eq!(two, "hf:own/m: `*.gguf` matches a-f16.gguf, b-bf16.gguf; say which with `file`");
        assert!(error("*.gguf", &["../../x.gguf"]).ends_with("leads out of the repository"));
        assert!(error("*.gguf", &["/etc/x.gguf"]).ends_with("leads out of the repository"));
    }

    #[test]
    fn shards_belong_together() {
        assert_eq!(shards("a/m-00002-of-00002.gguf"), ["a/m-00001-of-00002.gguf", "a/m-00002-of-00002.gguf"]);
        assert_eq!(shards("m-1-of-2.gguf"), ["m-1-of-2.gguf"]);
    }

    #[test]
    fn the_cache_is_read_as_other_tools_write_it() {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub { endpoint: None, token: None, cache: dir.path().to_path_buf(), offline: true };
        let model = HubModel { repository: "own/m".into(), revision: "main".into(), file: "*.gguf".into() };
        assert_eq!(hub.locate(&model), None);
        let repository = dir.path().join("models--own--m");
        let snapshot = repository.join("snapshots/abc");
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        fs::write(repository.join("refs/main"), "abc").unwrap();
        fs::write(snapshot.join("m-00001-of-00002.gguf"), "").unwrap();
        assert_eq!(hub.locate(&model), None, "a shard is missing");
        fs::write(snapshot.join("m-00002-of-00002.gguf"), "").unwrap();
        let first = snapshot.join("m-00001-of-00002.gguf");
        assert_eq!(hub.locate(&model), Some(first.clone()));
        let pinned = HubModel { revision: "abc".into(), ..model };
        assert_eq!(hub.locate(&pinned), Some(first));
    }
}
