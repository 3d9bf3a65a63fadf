//! Models of the Hugging Face hub: found in its cache, fetched through its client library where that is allowed, and checked against their hashes.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::events::Listener;
use super::expand::{HubModel, SOURCE_TYPES, first_shards};
use super::key::Hashes;
use crate::error::{Error, PipelineError, Result};
use crate::gguf::ShardName;
use crate::util::progress::Progress;

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
        let repository = self.repository(model);
        let named = fs::read_to_string(repository.join("refs").join(&model.revision)).ok();
        let folder = snapshot(&repository, named.as_deref().unwrap_or(&model.revision).trim());
        let mut names = Vec::new();
        list(&folder, Path::new(""), &mut names);
        let file = choose(model, &names).ok()?;
        let is_whole = shards(&file).all(|shard| folder.join(shard).exists());
        is_whole.then(|| folder.join(file))
    }

    fn repository(&self, model: &HubModel) -> PathBuf {
        self.cache.join(format!("models--{}", model.repository.replace('/', "--")))
    }

    /// The model in the cache, fetched first if it is not there, and compared with its hashes.
    ///
    /// # Errors
    /// [`PipelineError::HubMissing`] where nothing may be fetched, [`PipelineError::Hub`] for what goes wrong on the way and for other bytes than
    /// the hub has, [`Error::Interrupted`]; shards that are whole by then are kept.
    pub fn get(
        &self,
        model: &HubModel,
        hashes: &Hashes,
        listener: &dyn Listener,
        progress: &dyn Progress,
    ) -> Result<PathBuf> {
        // What a pattern means is known of the whole list alone, of which the cache has what somebody needed.
        let is_list_needed = !self.offline && model.file.contains(['*', '?', '[']);
        let found = match self.locate(model).filter(|_| !is_list_needed) {
            Some(found) => found,
            None if self.offline => return Err(self.missing(model, "nothing may be fetched (--offline)")),
            None => client::fetch(self, model, listener, progress)?,
        };
        for shard in shards(&found.to_string_lossy()) {
            check(&shard, model, hashes, progress)?;
        }
        Ok(found)
    }

    fn missing(&self, model: &HubModel, why: &'static str) -> Error {
        let HubModel { repository, revision, file } = model.clone();
        PipelineError::HubMissing { repository, revision, missing: file, cache: self.cache.clone(), why }.into()
    }
}

/// The folder of a commit in the cache.
fn snapshot(repository: &Path, commit: &str) -> PathBuf {
    repository.join("snapshots").join(commit)
}

/// Compares a file with its name among the blobs: of large files that is the SHA-256 of what the hub has.
fn check(path: &Path, model: &HubModel, hashes: &Hashes, progress: &dyn Progress) -> Result<()> {
    let blob = path.canonicalize().map_err(Error::io(path, "open"))?;
    let expected = blob.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if expected.len() != 64 || !expected.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(()); // a small file, which has no such hash
    }
    let found = hashes.file(path, progress)?;
    if found == expected {
        return Ok(());
    }
    // Neither may be taken for the model by anybody.
    let _ = (fs::remove_file(path), fs::remove_file(&blob));
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    Err(refused(model, &format!("{file}: SHA-256 is {found}, expected {expected}; it was removed"), true))
}

fn refused(model: &HubModel, problem: &str, transient: bool) -> Error {
    let (repository, problem) = (model.repository.clone(), problem.to_owned());
    PipelineError::Hub { repository, problem, transient }.into()
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
    let wrong = |problem: String| refused(model, &problem, false);
    let pattern = glob::Pattern::new(&model.file).map_err(|error| wrong(format!("`{}`: {error}", model.file)))?;
    let fits = |name: &&String| pattern.matches(name) || **name == model.file;
    let found = first_shards(names.iter().filter(fits).map(PathBuf::from).collect());
    let is_float = |path: &&PathBuf| {
        let name = path.to_string_lossy().to_ascii_lowercase();
        SOURCE_TYPES.iter().any(|float| name.contains(float))
    };
    let floats: Vec<PathBuf> = found.iter().filter(is_float).cloned().collect();
    // A name alone means that file; a pattern means weights that are not quantised, if there are any.
    let found = if found.len() > 1 && !floats.is_empty() { floats } else { found };
    match &found[..] {
        [] => Err(wrong(format!("no file matches `{}`", model.file))),
        [one] if is_inside(one) => Ok(one.to_string_lossy().into_owned()),
        [one] => Err(wrong(format!("the name `{}` leads out of the repository", one.display()))),
        several => {
            let names: Vec<_> = several.iter().map(|path| path.display().to_string()).collect();
            Err(wrong(format!("`{}` matches {}; say which with `file`", model.file, names.join(", "))))
        }
    }
}

fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// All shards of a model, by the name of one.
fn shards(file: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let shard = ShardName::parse(Path::new(file));
    let whole = shard.is_none().then(|| PathBuf::from(file));
    whole.into_iter().chain(shard.into_iter().flat_map(|shard| (1..=shard.count).map(move |number| shard.path(number))))
}

#[cfg(feature = "hub")]
mod client {
    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
    use std::time::{Duration, Instant};

    use hf_hub::api::sync::{ApiBuilder, ApiError};
    use hf_hub::{Cache, Repo, RepoType};

    use super::{Hub, HubModel, choose, refused, shards, snapshot};
    use crate::error::{Error, Result};
    use crate::pipeline::events::{Event, Listener};
    use crate::util::progress::Progress;

    /// How often an interruption is looked for while bytes come.
    const GLANCE: Duration = Duration::from_millis(50);
    /// Tries of the client library to continue a connection that broke.
    const CONTINUED: usize = 3;
    /// The least time between two reports on one file.
    const REPORT: Duration = Duration::from_secs(1);

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
        let cache = Cache::new(hub.cache.clone());
        let wanted = Repo::with_revision(model.repository.clone(), RepoType::Model, model.revision.clone());
        let api = builder.build().map_err(|error| failed(&error))?.repo(wanted.clone());
        let info = api.info().map_err(|error| failed(&error))?;
        let names: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let first = choose(model, &names)?;
        if !info.sha.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(refused(model, &format!("`{}` is no commit", info.sha), false));
        }
        let folder = snapshot(&hub.repository(model), &info.sha);
        for shard in shards(&first).map(|shard| shard.to_string_lossy().into_owned()) {
            if !names.contains(&shard) {
                return Err(refused(model, &format!("{shard} is not there, which {first} belongs with"), false));
            }
            if folder.join(&shard).exists() {
                continue; // whole: the client library links only files that are
            }
            let teller = Teller { file: shard.clone(), done: 0, told: None, total: 0, sender: sender.clone() };
            api.download_with_progress(&shard, teller)
                .map_err(|error| refused(model, &format!("{shard}: {error}"), is_transient(&error)))?;
        }
        // Where every shard was there, nobody has said yet that the revision is this commit.
        let named = cache.repo(wanted).create_ref(&info.sha);
        named.map_err(Error::io(&folder, "name the revision of"))?;
        Ok(folder.join(first))
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
        told: Option<Instant>,
        total: u64,
        sender: Sender<Said>,
    }

    impl Teller {
        fn tell(&mut self) {
            self.told = Some(Instant::now());
            let _ = self.sender.send(Said::Bytes { file: self.file.clone(), done: self.done, total: self.total });
        }
    }

    impl hf_hub::api::Progress for Teller {
        fn init(&mut self, size: usize, _filename: &str) {
            (self.done, self.total) = (0, size as u64);
            self.tell();
        }

        fn update(&mut self, size: usize) {
            self.done += size as u64;
            if self.told.is_none_or(|at| at.elapsed() >= REPORT) {
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
        let all = |file: &str| shards(file).collect::<Vec<_>>();
        let two = ["a/m-00001-of-00002.gguf", "a/m-00002-of-00002.gguf"].map(PathBuf::from);
        assert_eq!(all("a/m-00002-of-00002.gguf"), two);
        assert_eq!(all("m-1-of-2.gguf"), [PathBuf::from("m-1-of-2.gguf")]);
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
