//! A client on libiscsi, the initiator that ours is measured by.
//!
//! The loop is that of libiscsi's own `iscsi-perf`: wait, serve, send the next command from within
//! the callback of the last. Other than that program it also writes, ends after a number of I/Os,
//! and tells how long each took. The library is loaded when the bench runs, so that nothing else
//! needs it.

use crate::{clock, quantile, thread_cpu};
use libc::{c_char, c_int, c_short, c_uchar, c_void};
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

const FILE: &CStr = c"libiscsi.so.7";
/// `ISCSI_SESSION_NORMAL`.
const SESSION_NORMAL: c_int = 2;
/// `ISCSI_HEADER_DIGEST_NONE`.
const DIGEST_NONE: c_int = 0;
/// `SCSI_STATUS_GOOD`.
const GOOD: c_int = 0;
const BLOCK_BYTES: u32 = 512;

type Context = *mut c_void;
type Callback = extern "C" fn(Context, c_int, *mut c_void, *mut c_void);

/// READ(16) or WRITE(16) with all protection and caching bits zero.
type Read = unsafe extern "C" fn(
    Context,
    c_int,
    u64,
    u32,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    Callback,
    *mut c_void,
) -> *mut c_void;
type Write = unsafe extern "C" fn(
    Context,
    c_int,
    u64,
    *mut c_uchar,
    u32,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    Callback,
    *mut c_void,
) -> *mut c_void;

/// The functions of `iscsi.h` that are used.
struct Library {
    create_context: unsafe extern "C" fn(*const c_char) -> Context,
    destroy_context: unsafe extern "C" fn(Context) -> c_int,
    set_target: unsafe extern "C" fn(Context, *const c_char) -> c_int,
    set_session_type: unsafe extern "C" fn(Context, c_int) -> c_int,
    set_header_digest: unsafe extern "C" fn(Context, c_int) -> c_int,
    full_connect: unsafe extern "C" fn(Context, *const c_char, c_int) -> c_int,
    logout: unsafe extern "C" fn(Context) -> c_int,
    error: unsafe extern "C" fn(Context) -> *const c_char,
    fd: unsafe extern "C" fn(Context) -> c_int,
    which_events: unsafe extern "C" fn(Context) -> c_int,
    service: unsafe extern "C" fn(Context, c_int) -> c_int,
    read: Read,
    write: Write,
    free_task: unsafe extern "C" fn(*mut c_void),
}

/// A function of the loaded library, as the type of the place it is put.
macro_rules! symbol {
    ($handle:expr, $name:literal) => {{
        // SAFETY: the handle is of a loaded library, the name ends in a zero.
        let found = unsafe { libc::dlsym($handle, concat!($name, "\0").as_ptr().cast()) };
        assert!(!found.is_null(), "libiscsi has no {}", $name);
        // SAFETY: an address that is not null, as the function it is of; the types are those of
        // `iscsi.h`, version 7 of the interface.
        unsafe { std::mem::transmute_copy(&found) }
    }};
}

impl Library {
    fn load() -> Library {
        // SAFETY: libiscsi has no constructors of note; the name ends in a zero.
        let handle = unsafe { libc::dlopen(FILE.as_ptr(), libc::RTLD_NOW) };
        assert!(
            !handle.is_null(),
            "no {FILE:?}: apt-get install -y libiscsi7"
        );
        Library {
            create_context: symbol!(handle, "iscsi_create_context"),
            destroy_context: symbol!(handle, "iscsi_destroy_context"),
            set_target: symbol!(handle, "iscsi_set_targetname"),
            set_session_type: symbol!(handle, "iscsi_set_session_type"),
            set_header_digest: symbol!(handle, "iscsi_set_header_digest"),
            full_connect: symbol!(handle, "iscsi_full_connect_sync"),
            logout: symbol!(handle, "iscsi_logout_sync"),
            error: symbol!(handle, "iscsi_get_error"),
            fd: symbol!(handle, "iscsi_get_fd"),
            which_events: symbol!(handle, "iscsi_which_events"),
            service: symbol!(handle, "iscsi_service"),
            read: symbol!(handle, "iscsi_read16_task"),
            write: symbol!(handle, "iscsi_write16_task"),
            free_task: symbol!(handle, "scsi_free_scsi_task"),
        }
    }
}

/// What a client is to do: I/Os of one size in order, so many in flight, to the end of the time or
/// of the number.
#[derive(Clone, Debug)]
pub struct Job {
    /// `address:port`.
    pub portal: String,
    /// Name of the target.
    pub target: String,
    /// Logical unit number.
    pub lun: u32,
    /// Writes instead of reads.
    pub is_write: bool,
    /// Of one I/O; a multiple of 512.
    pub bytes: u32,
    /// I/Os in flight.
    pub depth: usize,
    /// Bytes of the unit that are used, from its beginning.
    pub span_bytes: u64,
    /// When no more are begun.
    pub runtime: Duration,
    /// After how many no more are begun.
    pub ios_max: u64,
}

/// What a client did.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// I/Os.
    pub ios: u64,
    /// CPU time, login and logout included.
    pub cpu: Duration,
    /// From the first command to the last answer.
    pub wall: Duration,
    /// 99 of 100 I/Os took no longer.
    pub p99: Duration,
}

struct Client<'a> {
    library: Library,
    context: Context,
    job: &'a Job,
    data: Vec<u8>,
    stop_at: Instant,
    next: Cell<u64>,
    begun: Cell<u64>,
    ended: Cell<u64>,
    /// In nanoseconds.
    latencies: RefCell<Vec<f64>>,
}

/// One I/O in flight: what a callback is given.
struct Slot<'a> {
    client: &'a Client<'a>,
    begun: Cell<Instant>,
}

impl Client<'_> {
    fn error(&self) -> String {
        // SAFETY: the context is alive, and its error a string.
        let text = unsafe { CStr::from_ptr((self.library.error)(self.context)) };
        text.to_string_lossy().into_owned()
    }

    fn wait_and_serve(&self) {
        // SAFETY: the context is alive.
        let fd = unsafe { (self.library.fd)(self.context) };
        // SAFETY: as above.
        let events = unsafe { (self.library.which_events)(self.context) } as c_short;
        let mut wait = libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        // SAFETY: one pollfd.
        if unsafe { libc::poll(&mut wait, 1, -1) } < 0 {
            return;
        }
        // SAFETY: the context is alive.
        let served = unsafe { (self.library.service)(self.context, c_int::from(wait.revents)) };
        assert_eq!(served, 0, "libiscsi: {}", self.error());
    }
}

impl Slot<'_> {
    /// Sends the next command, if one is due.
    fn submit(&self) {
        let Client { job, library, .. } = self.client;
        let now = clock();
        if now >= self.client.stop_at || self.client.begun.get() >= job.ios_max {
            return;
        }
        let at = self.client.next.get();
        let end = job.span_bytes / u64::from(job.bytes);
        self.client.next.set((at + 1) % end);
        self.client.begun.set(self.client.begun.get() + 1);
        self.begun.set(now);
        let (context, lun, bytes) = (self.client.context, job.lun as c_int, job.bytes);
        let (lba, block) = (at * u64::from(bytes / BLOCK_BYTES), BLOCK_BYTES as c_int);
        let me = std::ptr::from_ref(self).cast_mut().cast();
        let task = if job.is_write {
            let data = self.client.data.as_ptr().cast_mut();
            // SAFETY: the context is alive; data, which are only read, and slots stay where they
            // are until the last callback has run.
            unsafe {
                (library.write)(
                    context, lun, lba, data, bytes, block, 0, 0, 0, 0, 0, done, me,
                )
            }
        } else {
            // SAFETY: as above.
            unsafe { (library.read)(context, lun, lba, bytes, block, 0, 0, 0, 0, 0, done, me) }
        };
        assert!(!task.is_null(), "libiscsi: {}", self.client.error());
    }
}

/// A command ended: the next one is sent from here.
extern "C" fn done(_: Context, status: c_int, task: *mut c_void, private: *mut c_void) {
    // SAFETY: `submit` passed a slot, which outlives its command.
    let slot: &Slot<'_> = unsafe { &*private.cast_const().cast() };
    let client = slot.client;
    // SAFETY: the task is ours from here on.
    unsafe { (client.library.free_task)(task) };
    assert_eq!(status, GOOD, "libiscsi: {}", client.error());
    let took = clock() - slot.begun.get();
    client.latencies.borrow_mut().push(took.as_nanos() as f64);
    client.ended.set(client.ended.get() + 1);
    slot.submit();
}

/// Logs in, does the job, logs out.
///
/// # Panics
/// If the library is missing, or anything fails.
pub fn run(job: &Job) -> Finished {
    let cpu = thread_cpu();
    let library = Library::load();
    let text = |text: &str| CString::new(text).expect("no zero in a name");
    let (portal, target) = (text(&job.portal), text(&job.target));
    let name = text("iqn.2024-12.example.test:libiscsi");
    // SAFETY: the name ends in a zero.
    let context = unsafe { (library.create_context)(name.as_ptr()) };
    assert!(!context.is_null(), "libiscsi: no context");
    let mut client = Client {
        library,
        context,
        job,
        data: vec![0x5a; job.bytes as usize],
        stop_at: clock(),
        next: Cell::default(),
        begun: Cell::default(),
        ended: Cell::default(),
        latencies: RefCell::default(),
    };
    // SAFETY: the context is alive, both strings end in a zero.
    let connected = unsafe {
        (client.library.set_target)(context, target.as_ptr());
        (client.library.set_session_type)(context, SESSION_NORMAL);
        (client.library.set_header_digest)(context, DIGEST_NONE);
        (client.library.full_connect)(context, portal.as_ptr(), job.lun as c_int)
    };
    assert_eq!(connected, 0, "libiscsi: {}", client.error());
    let begun = clock();
    client.stop_at = begun + job.runtime;
    let slots: Vec<Slot<'_>> = (0..job.depth)
        .map(|_| Slot {
            client: &client,
            begun: Cell::new(begun),
        })
        .collect();
    slots.iter().for_each(Slot::submit);
    while client.ended.get() < client.begun.get() {
        client.wait_and_serve();
    }
    let wall = begun.elapsed();
    // SAFETY: nothing is in flight, and the context is not used again.
    unsafe {
        (client.library.logout)(context);
        (client.library.destroy_context)(context);
    }
    let cpu = thread_cpu() - cpu;
    let mut latencies = client.latencies.take();
    latencies.sort_by(f64::total_cmp);
    Finished {
        ios: client.ended.get(),
        cpu,
        wall,
        p99: Duration::from_nanos(quantile(&latencies, 0.99) as u64),
    }
}
