// Stands between a node of a chaos run and the system: has its disk and its clock fail as the control file says, and keeps
// what the files and names were that the disk has not synced. What a power cut leaves of them is not decided here.
//
// CHAOS_SHIM names a folder with the control file, in which the journal is kept; CHAOS_DATA the node's data folder, a path
// without links. Nothing outside of the latter is touched. The journal:
//   f-INODE  of a file: each write and change of length since its last sync, with the bytes that were there before
//   names    of folders: each name made, moved and taken away since their last sync
//   u-SEQ    another name of what the operation of that number took away
// A record is written before what it tells of is done, or, of new names, after; a SIGKILL between the two is a power cut
// that came a moment earlier or later. It outlives the process as the page cache does. What a process does without the C
// library (a raw system call, a shared map) is not seen and counts as synced. Of the library's functions those are here that
// a Rust program changes files by.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#if !defined(__linux__) || __SIZEOF_POINTER__ != 8
#error "for Linux on 64 bits"
#endif

// As in control.rs, which writes the first part while the node runs; the second part is written here.
struct control {
    uint64_t magic, seed, journal, share, sync_errors, full, slow_us, lies;
    int64_t ahead_ns;
    uint64_t seq, loads, drawn, failed, refused, slowed, syncs_failed, told, trouble;
};
#define MAGIC 0x31304d4948534843 // "CHSHIM01"
#define GET(field) __atomic_load_n(&ctl->field, __ATOMIC_RELAXED)
#define COUNT(field) __atomic_add_fetch(&ctl->field, 1, __ATOMIC_RELAXED)

// As in undo.rs.
enum { WRITE, RESIZE, CREATE, UNLINK, RENAME, MKDIR, RMDIR };
struct record {
    uint64_t seq, kind;
    uint64_t a; // offset; the new length; the folder's inode
    uint64_t b; // bytes written; nothing; the inode
    uint64_t c; // the length before
    uint64_t len; // bytes that follow: those that were there; names, each with a zero
};

static struct control *ctl;
static char data[PATH_MAX];
static size_t data_len;
static int journal = -1;
// Held from a record to the end of what it tells of, so that the journal has them in the order in which they happened.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int (*real_clock)(clockid_t, struct timespec *);

__attribute__((constructor)) static void start(void) {
    const char *folder = getenv("CHAOS_SHIM"), *of = getenv("CHAOS_DATA");
    real_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (!folder || !of || strlen(of) >= sizeof data) return;
    strcpy(data, of);
    data_len = strlen(data);
    journal = syscall(SYS_openat, AT_FDCWD, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    int file = syscall(SYS_openat, journal, "control", O_RDWR | O_CLOEXEC, 0);
    void *map = mmap(NULL, sizeof *ctl, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file < 0 || map == MAP_FAILED || ((struct control *)map)->magic != MAGIC) {
        fprintf(stderr, "chaos: %s holds no control file of this version\n", folder);
        _exit(70);
    }
    close(file);
    ctl = map;
    COUNT(loads);
}

// --- Which files are the node's

static int name_of(int fd, char path[PATH_MAX]) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (len < 0) return 0;
    path[len] = 0;
    return !strncmp(path, data, data_len) && (path[data_len] == '/' || !path[data_len]);
}

static int is_ours(int fd, struct stat *st) {
    char path[PATH_MAX];
    return ctl && !fstat(fd, st) && (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode)) && name_of(fd, path);
}

struct place {
    char path[PATH_MAX];
    const char *name; // within the data folder
    uint64_t folder;
    int exists;
    struct stat st;
};

// Where a path leads, if that is in the data folder.
static int find(int at, const char *path, struct place *p) {
    char parent[PATH_MAX];
    size_t len = strlen(path);
    if (!ctl || len >= sizeof parent) return 0;
    memcpy(parent, path, len + 1);
    while (len > 1 && parent[len - 1] == '/') parent[--len] = 0;
    char *slash = strrchr(parent, '/');
    const char *last = slash ? slash + 1 : parent;
    char name[NAME_MAX + 1];
    if (strlen(last) > NAME_MAX || !*last) return 0;
    strcpy(name, last);
    if (slash) slash[slash == parent] = 0;
    int fd = syscall(SYS_openat, at, slash ? parent : ".", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd < 0) return 0;
    int is = name_of(fd, p->path) && !fstat(fd, &p->st) && strlen(p->path) + strlen(name) + 2 < PATH_MAX;
    if (is) {
        p->folder = p->st.st_ino;
        strcat(strcat(p->path, "/"), name);
        p->name = p->path + data_len + 1;
        p->exists = !fstatat(fd, name, &p->st, AT_SYMLINK_NOFOLLOW);
    }
    close(fd);
    return is;
}

// --- The journal

static char chunk[1 << 16];

// The record here, if there is one that is whole: one that a kill cut off tells of what was not done.
static int record_at(int fd, uint64_t at, struct record *r) {
    struct stat st;
    return syscall(SYS_pread64, fd, r, sizeof *r, at) == (ssize_t)sizeof *r && !fstat(fd, &st) &&
           at + sizeof *r + r->len <= (uint64_t)st.st_size;
}

static int put(int fd, const void *bytes, size_t len, uint64_t at) {
    while (len > 0) {
        ssize_t done = syscall(SYS_pwrite64, fd, bytes, len, at);
        if (done <= 0) return 0;
        bytes = (const char *)bytes + done, len -= done, at += done;
    }
    return 1;
}

static int copy(int from, uint64_t at, int to, uint64_t there, uint64_t len) {
    while (len > 0) {
        ssize_t some = syscall(SYS_pread64, from, chunk, len < sizeof chunk ? len : sizeof chunk, at);
        if (some <= 0 || !put(to, chunk, some, there)) return 0;
        at += some, there += some, len -= some;
    }
    return 1;
}

static int append(const char *name, struct record r, const void *bytes, int from, uint64_t at) {
    int fd = syscall(SYS_openat, journal, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    struct record old;
    uint64_t end = 0;
    while (record_at(fd, end, &old)) end += sizeof old + old.len;
    int ok = fd >= 0 && !syscall(SYS_ftruncate, fd, end) && put(fd, &r, sizeof r, end) &&
             (bytes ? put(fd, bytes, r.len, end + sizeof r) : copy(from, at, fd, end + sizeof r, r.len));
    if (!ok) COUNT(trouble);
    if (fd >= 0) close(fd);
    return ok;
}

// Of a file that is about to change: what is in it from `at` on, `len` bytes at most.
static void keep_bytes(int kind, const char *path, const struct stat *st, uint64_t at, uint64_t n, uint64_t len) {
    char name[40];
    snprintf(name, sizeof name, "f-%lu", (unsigned long)st->st_ino);
    uint64_t size = st->st_size, there = at < size ? size - at : 0;
    struct record r = {COUNT(seq), kind, at, n, size, len < there ? len : there};
    // Its own descriptor may be for writing only.
    int from = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (from < 0) COUNT(trouble);
    append(name, r, NULL, from, at);
    if (from >= 0) close(from);
}

static void keep_of(int fd, int kind, const struct stat *st, uint64_t at, uint64_t n, uint64_t len) {
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    keep_bytes(kind, path, st, at, n, len);
}

// Of names; what is taken away by it gets another one, so that it can come back.
static void keep_name(int kind, uint64_t inode, const struct place *p, const struct place *to) {
    char names[2 * PATH_MAX], link[40];
    size_t len = strlen(p->name) + 1;
    memcpy(names, p->name, len);
    const struct place *lost = kind == UNLINK ? p : to;
    if (to) {
        strcpy(names + len, to->name);
        len += strlen(to->name) + 1;
    }
    struct record r = {COUNT(seq), kind, (to ? to : p)->folder, inode, 0, len};
    snprintf(link, sizeof link, "u-%lu", (unsigned long)r.seq);
    if (lost && lost->exists && linkat(AT_FDCWD, lost->path, journal, link, 0)) COUNT(trouble);
    append("names", r, names, -1, 0);
}

static void forget_file(uint64_t inode) {
    char name[40];
    snprintf(name, sizeof name, "f-%lu", (unsigned long)inode);
    syscall(SYS_unlinkat, journal, name, 0);
}

// What was taken away for good.
static void let_go(uint64_t seq) {
    char link[40];
    struct stat st;
    snprintf(link, sizeof link, "u-%lu", (unsigned long)seq);
    if (fstatat(journal, link, &st, AT_SYMLINK_NOFOLLOW)) return;
    if (st.st_nlink == 1) forget_file(st.st_ino);
    syscall(SYS_unlinkat, journal, link, 0);
}

// A sync has made durable what came up to this number; `folder`: of which, if it is names.
static void synced(const char *name, uint64_t until, uint64_t folder) {
    int fd = syscall(SYS_openat, journal, name, O_RDONLY | O_CLOEXEC, 0), out = -1;
    if (fd < 0) return;
    struct record r;
    uint64_t end = 0;
    int ok = 1;
    for (uint64_t at = 0; record_at(fd, at, &r); at += sizeof r + r.len) {
        if (r.seq <= until && (!folder || r.a == folder)) {
            if (folder) let_go(r.seq);
            continue;
        }
        if (out < 0) out = syscall(SYS_openat, journal, "new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        ok &= copy(fd, at, out, end, sizeof r + r.len);
        end += sizeof r + r.len;
    }
    close(fd);
    if (out >= 0) close(out);
    ok &= !(out >= 0 ? renameat(journal, "new", journal, name) : (int)syscall(SYS_unlinkat, journal, name, 0));
    if (!ok) COUNT(trouble);
}

// --- Faults

static int fails(int error) {
    errno = error;
    return -1;
}

// A read or a write of the node's fails, by the seed and its number.
static int draws_error(void) {
    uint64_t z = GET(seed) + COUNT(drawn) * 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    z ^= z >> 31;
    if (z >> 32 >= GET(share)) return 0;
    COUNT(failed);
    return 1;
}

static int has_no_room(void) {
    if (!GET(full)) return 0;
    COUNT(refused);
    return 1;
}

static ssize_t do_write(long call, int fd, const void *bytes, size_t count, size_t len, int64_t at) {
    struct stat st;
    // pwritev has the two halves of the offset; the second one says nothing on 64 bits.
    if (!is_ours(fd, &st)) return syscall(call, fd, bytes, count, at, 0L);
    if (GET(share) && draws_error()) return fails(EIO);
    pthread_mutex_lock(&lock);
    fstat(fd, &st);
    int appends = syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND;
    int64_t from = appends ? st.st_size : at >= 0 ? at : syscall(SYS_lseek, fd, 0, SEEK_CUR);
    ssize_t done;
    if (from + (int64_t)len > st.st_size && has_no_room()) {
        done = fails(ENOSPC);
    } else {
        if (GET(journal)) keep_of(fd, WRITE, &st, from, len, len);
        done = syscall(call, fd, bytes, count, at, 0L);
    }
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

static size_t length(const struct iovec *parts, int count) {
    size_t len = 0;
    for (int i = 0; i < count; i++) len += parts[i].iov_len;
    return len;
}

ssize_t write(int fd, const void *bytes, size_t len) { return do_write(SYS_write, fd, bytes, len, len, -1); }
ssize_t pwrite64(int fd, const void *b, size_t len, off64_t at) { return do_write(SYS_pwrite64, fd, b, len, len, at); }
ssize_t writev(int fd, const struct iovec *p, int n) { return do_write(SYS_writev, fd, p, n, length(p, n), -1); }
ssize_t pwritev64(int fd, const struct iovec *p, int n, off64_t at) {
    return do_write(SYS_pwritev, fd, p, n, length(p, n), at);
}

static ssize_t do_read(long call, int fd, void *bytes, size_t count, int64_t at) {
    struct stat st;
    if (ctl && GET(share) && is_ours(fd, &st) && draws_error()) return fails(EIO);
    return syscall(call, fd, bytes, count, at, 0L);
}

ssize_t read(int fd, void *bytes, size_t len) { return do_read(SYS_read, fd, bytes, len, 0); }
ssize_t pread64(int fd, void *bytes, size_t len, off64_t at) { return do_read(SYS_pread64, fd, bytes, len, at); }
ssize_t readv(int fd, const struct iovec *p, int n) { return do_read(SYS_readv, fd, (void *)p, n, 0); }
ssize_t preadv64(int fd, const struct iovec *p, int n, off64_t at) { return do_read(SYS_preadv, fd, (void *)p, n, at); }

int ftruncate64(int fd, off64_t len) {
    struct stat st;
    if (!is_ours(fd, &st)) return syscall(SYS_ftruncate, fd, len);
    if (len > st.st_size && has_no_room()) return fails(ENOSPC);
    pthread_mutex_lock(&lock);
    if (GET(journal) && !fstat(fd, &st)) keep_of(fd, RESIZE, &st, len, 0, UINT64_MAX);
    int done = syscall(SYS_ftruncate, fd, len), error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

static uint64_t now_us(void) {
    struct timespec t;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ull + t.tv_nsec / 1000;
}

static int do_sync(long call, int fd) {
    struct stat st;
    if (!is_ours(fd, &st)) return syscall(call, fd);
    for (uint64_t left = GET(sync_errors); left > 0;) {
        if (!__atomic_compare_exchange_n(&ctl->sync_errors, &left, left - 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
        COUNT(syncs_failed);
        return fails(EIO);
    }
    if (GET(lies)) return 0;
    // What has a number by now has been done; what comes while it syncs is for the next one.
    pthread_mutex_lock(&lock);
    uint64_t until = GET(seq);
    pthread_mutex_unlock(&lock);
    int done = syscall(call, fd), error = errno;
    if (GET(slow_us)) {
        COUNT(slowed);
        // It ends with the fault.
        for (uint64_t began = now_us(), by; (by = GET(slow_us)) && now_us() - began < by;) {
            uint64_t left = began + by - now_us();
            struct timespec some = {0, (left < 5000 ? left : 5000) * 1000};
            nanosleep(&some, NULL);
        }
    }
    if (!done && GET(journal)) {
        char name[40];
        snprintf(name, sizeof name, "f-%lu", (unsigned long)st.st_ino);
        pthread_mutex_lock(&lock);
        if (S_ISDIR(st.st_mode)) synced("names", until, st.st_ino);
        else synced(name, until, 0);
        pthread_mutex_unlock(&lock);
    }
    errno = error;
    return done;
}

int fsync(int fd) { return do_sync(SYS_fsync, fd); }
int fdatasync(int fd) { return do_sync(SYS_fdatasync, fd); }

static int do_open(int at, const char *path, int flags, mode_t mode) {
    struct place p;
    int changes = (flags & (O_CREAT | O_TRUNC)) && (flags & O_TMPFILE) != O_TMPFILE;
    if (!ctl || !changes || !find(at, path, &p)) return syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&lock);
    find(at, path, &p);
    int makes = !p.exists && (flags & O_CREAT), fd;
    if (makes && has_no_room()) {
        fd = fails(ENOSPC);
    } else {
        int refused = (flags & O_CREAT) && (flags & O_EXCL);
        int cuts = p.exists && (flags & O_TRUNC) && !refused && S_ISREG(p.st.st_mode) && p.st.st_size > 0;
        if (cuts && GET(journal)) keep_bytes(RESIZE, p.path, &p.st, 0, 0, UINT64_MAX);
        fd = syscall(SYS_openat, at, path, flags, mode);
        if (fd >= 0 && makes && GET(journal) && !fstat(fd, &p.st)) {
            // It may have the number of a file that is gone.
            forget_file(p.st.st_ino);
            keep_name(CREATE, p.st.st_ino, &p, NULL);
        }
    }
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

#define MODE(flags, mode)                                   \
    mode_t mode = 0;                                        \
    if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { \
        va_list more;                                       \
        va_start(more, flags);                              \
        mode = va_arg(more, mode_t);                        \
        va_end(more);                                       \
    }

int open(const char *path, int flags, ...) { MODE(flags, mode) return do_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, mode) return do_open(AT_FDCWD, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags, mode) return do_open(at, path, flags, mode); }

int rename(const char *old, const char *new) {
    struct place p, q;
    int seen = ctl && GET(journal) && find(AT_FDCWD, old, &p) && find(AT_FDCWD, new, &q);
    if (seen) {
        pthread_mutex_lock(&lock);
        if (find(AT_FDCWD, old, &p) && p.exists && find(AT_FDCWD, new, &q)) keep_name(RENAME, p.st.st_ino, &p, &q);
    }
    int done = syscall(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, 0), error = errno;
    if (seen) pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

int unlinkat(int at, const char *path, int flags) {
    struct place p;
    int seen = ctl && GET(journal) && find(at, path, &p);
    if (seen) {
        pthread_mutex_lock(&lock);
        int kind = flags & AT_REMOVEDIR ? RMDIR : UNLINK;
        if (find(at, path, &p) && p.exists && S_ISDIR(p.st.st_mode) == (kind == RMDIR))
            keep_name(kind, p.st.st_ino, &p, NULL);
    }
    int done = syscall(SYS_unlinkat, at, path, flags), error = errno;
    if (seen) pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdir(const char *path, mode_t mode) {
    struct place p;
    if (!ctl || !find(AT_FDCWD, path, &p)) return syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    if (!p.exists && has_no_room()) return fails(ENOSPC);
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_mkdirat, AT_FDCWD, path, mode), error = errno;
    if (!done && GET(journal) && find(AT_FDCWD, path, &p)) keep_name(MKDIR, p.st.st_ino, &p, NULL);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

// What copies within the system is refused, so that who wants it reads and writes instead.
ssize_t copy_file_range(int in, off64_t *at, int out, off64_t *there, size_t len, unsigned flags) {
    struct stat st;
    if (is_ours(out, &st)) return fails(EINVAL);
    return syscall(SYS_copy_file_range, in, at, out, there, len, flags);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t len) {
    struct stat st;
    if (is_ours(out, &st)) return fails(EINVAL);
    return syscall(SYS_sendfile, out, in, at, len);
}

// --- The wall clock

int clock_gettime(clockid_t clock, struct timespec *t) {
    int done = real_clock ? real_clock(clock, t) : (int)syscall(SYS_clock_gettime, clock, t);
    int64_t ahead = ctl && !done && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) ? GET(ahead_ns) : 0;
    if (ahead) {
        COUNT(told);
        int64_t ns = t->tv_nsec + ahead % 1000000000;
        t->tv_sec += ahead / 1000000000 + (ns >= 1000000000) - (ns < 0);
        t->tv_nsec = (ns + 1000000000) % 1000000000;
    }
    return done;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    *t = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
