//! A headless Chromium, driven through the DevTools protocol over pipes: no port, no network, no further crate.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

/// How long the browser may take for one answer, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// Names under which Chromium is installed.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// A browser with one page.
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: String,
    last_id: u64,
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

fn program() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
    NAMES.iter().find_map(|name| folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()))
}

impl Browser {
    /// Starts a browser, or says why there is none.
    pub fn start() -> Result<Browser, String> {
        let program = program().ok_or("no Chromium in PATH")?;
        let profile = tempfile::tempdir().map_err(|error| error.to_string())?;
        // The protocol is spoken on the descriptors 3 and 4, which the shell makes of standard input and output.
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#])
            .arg(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
            .args(["--remote-debugging-pipe", "--disable-dev-shm-usage", "--disable-background-networking"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start Chromium: {error}"))?;
        let (Some(to), Some(output)) = (child.stdin.take(), child.stdout.take()) else { return Err("no pipes".into()) };
        let (sender, from) = channel();
        std::thread::spawn(move || {
            let messages = BufReader::new(output).split(0);
            let values = messages.map_while(Result::ok).filter_map(|bytes| serde_json::from_slice(&bytes).ok());
            values.take_while(|value: &Value| sender.send(value.clone()).is_ok()).for_each(drop);
        });
        let mut browser =
            Browser { child, to, from, session: String::new(), last_id: 0, events: Vec::new(), _profile: profile };
        let page = browser.try_call("Target.createTarget", &json!({"url": "about:blank"}))?;
        let attached =
            browser.try_call("Target.attachToTarget", &json!({"targetId": page["targetId"], "flatten": true}))?;
        attached["sessionId"].as_str().unwrap_or_default().clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.try_call(&format!("{domain}.enable"), &json!({}))?;
        }
        Ok(browser)
    }

    /// Calls a method of the protocol; what the browser reports meanwhile is kept.
    fn try_call(&mut self, method: &str, params: &Value) -> Result<Value, String> {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).map_err(|error| format!("Chromium went away: {error}"))?;
        loop {
            let value = self.from.recv_timeout(PATIENCE).map_err(|error| format!("{method}: {error}"))?;
            if value["id"] != json!(self.last_id) {
                self.events.push(value);
            } else if value.get("error").is_some() {
                return Err(format!("{method}: {}", value["error"]));
            } else {
                return Ok(value["result"].clone());
            }
        }
    }

    /// Calls a method of the protocol.
    #[track_caller]
    pub fn call(&mut self, method: &str, params: &Value) -> Value {
        self.try_call(method, params).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Sets the size of the window in CSS pixels.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Sets what the system prefers: `light` or `dark`.
    pub fn prefer(&mut self, scheme: &str) {
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &feature);
    }

    /// Opens a file and waits until it is there.
    pub fn open(&mut self, path: &Path) {
        self.events.clear();
        self.call("Page.navigate", &json!({"url": format!("file://{}", path.display())}));
        self.settle();
    }

    /// Loads the page anew.
    pub fn reload(&mut self) {
        self.call("Page.reload", &json!({}));
        self.settle();
    }

    fn settle(&mut self) {
        let loaded = |events: &[Value]| events.iter().any(|event| event["method"] == "Page.loadEventFired");
        while !loaded(&self.events) {
            let event = self.from.recv_timeout(PATIENCE).expect("the page loads");
            self.events.push(event);
        }
        self.events.retain(|event| event["method"] != "Page.loadEventFired");
    }

    /// Evaluates an expression in the page.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", &params);
        assert!(result.get("exceptionDetails").is_none(), "`{expression}`: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// Moves the mouse to the middle of an element and clicks.
    #[track_caller]
    pub fn click(&mut self, selector: &str) {
        let [x, y] = self.middle(selector);
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", &event);
        }
    }

    /// Moves the mouse to the middle of an element.
    #[track_caller]
    pub fn point_at(&mut self, selector: &str) {
        let [x, y] = self.middle(selector);
        self.call("Input.dispatchMouseEvent", &json!({"type": "mouseMoved", "x": x, "y": y}));
    }

    /// The middle of an element, scrolled to; a smooth scroll that was under way has come to its end.
    #[track_caller]
    fn middle(&mut self, selector: &str) -> [f64; 2] {
        let script = format!(
            "(async () => {{ const e = document.querySelector({selector:?}); let top;
              do {{ e.scrollIntoView({{block: 'center', behavior: 'instant'}}); top = e.getBoundingClientRect().top;
                await new Promise(done => setTimeout(done, 50)); }} while (e.getBoundingClientRect().top !== top);
              const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
        );
        let place = self.eval(&script);
        [0, 1].map(|i| place[i].as_f64().unwrap_or_else(|| panic!("no element `{selector}`")))
    }

    /// Presses a key.
    pub fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", &json!({"type": kind, "key": key, "code": key}));
        }
    }

    /// Gives what the console, the security policy and the network complained about or did since the page was opened.
    pub fn complaints(&mut self) -> Vec<String> {
        self.eval("new Promise(done => setTimeout(done, 50))");
        self.events.iter().filter_map(complaint).collect()
    }
}

fn complaint(event: &Value) -> Option<String> {
    let params = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(format!("exception: {}", params["exceptionDetails"])),
        "Log.entryAdded" => Some(format!("log: {}", params["entry"])),
        "Runtime.consoleAPICalled" => Some(format!("console: {}", params["args"])),
        "Page.javascriptDialogOpening" => Some(format!("dialog: {}", params["message"])),
        "Network.requestWillBeSent" => {
            let url = params["request"]["url"].as_str()?;
            (!url.starts_with("file:///") || params["type"] != "Document").then(|| format!("request: {url}"))
        }
        _ => None,
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.try_call("Browser.close", &json!({}));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
