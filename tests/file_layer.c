/* A layer between a program and the C library's file functions, loaded with LD_PRELOAD (tests/file_layer.py compiles and drives it).
 *
 * Below one folder it either records every operation that changes a file, with its bytes, or makes the n-th operation of some
 * kinds fail with a given errno. Both are switched on by a call, so that a process can first import what takes long.
 *
 * A record is one line of text, "kind size inode parent-inode offset length path [tab] path2", and `length` bytes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN_READ, OPEN_WRITE, READ, WRITE, ALLOCATE, SYNC, RENAME, UNLINK, MKDIR, MMAP, MEMORY, KINDS };

static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static int fail_kinds, fail_errno, fail_for_good;
static long fail_at = -1, counted[KINDS];
static char failed[PATH_MAX * 2];
static size_t memory_bytes;
static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
/* files mapped for writing: what is stored in them passes no function, so their contents are recorded at every operation */
static struct { char path[PATH_MAX]; ino_t inode; char *copy; size_t size; } mapped[256];
static int maps;

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })

/* ---- which file ---- */

static int below(const char *path) {
    return root_length && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int absolute(int folder, const char *path, char *into) {
    if (!path || !root_length) return 0;
    if (*path == '/') snprintf(into, PATH_MAX, "%s", path);
    else {
        char base[PATH_MAX - 300];
        if (folder == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
        else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t n = readlink(link, base, sizeof base - 1);
            if (n < 0) return 0;
            base[n] = 0;
        }
        if (snprintf(into, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return below(into);
}

static int path_of(int fd, char *into) {
    if (!root_length || fd < 0) return 0;
    char link[64];
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, into, PATH_MAX - 1);
    errno = kept;
    if (n < 0) return 0;
    into[n] = 0;
    return below(into);
}

static ino_t inode_of(const char *path) {
    struct stat s;
    int kept = errno, found = !lstat(path, &s);
    errno = kept;
    return found ? s.st_ino : 0;
}

static ino_t parent_of(const char *path) {
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (slash) *slash = 0;
    return inode_of(parent);
}

/* ---- recording ---- */

static void put(const char *kind, const char *path, const char *path2, ino_t inode, off_t offset, const void *bytes, size_t length) {
    struct stat s;
    int kept = errno;
    if (!inode) inode = inode_of(path);
    long size = lstat(path, &s) ? -1 : (long)s.st_size;
    char line[PATH_MAX * 2 + 200];
    int n = snprintf(line, sizeof line, "%s %ld %lu %lu %ld %zu %s%s%s\n", kind, size, (unsigned long)inode,
                     (unsigned long)parent_of(path), (long)offset, length, path, path2 ? "\t" : "", path2 ? path2 : "");
    /* by syscall: a write through the C library would be recorded too */
    syscall(SYS_write, log_fd, line, n);
    for (size_t done = 0; done < length;) {
        ssize_t w = syscall(SYS_write, log_fd, (const char *)bytes + done, length - done);
        if (w <= 0) abort();
        done += w;
    }
    errno = kept;
}

static void record_maps(void) {
    for (int i = 0; i < maps; i++) {
        int kept = errno, fd = syscall(SYS_openat, AT_FDCWD, mapped[i].path, O_RDONLY);
        struct stat s;
        if (fd >= 0 && !fstat(fd, &s) && s.st_ino == mapped[i].inode) {
            char *now = malloc(s.st_size + 1);
            ssize_t n = syscall(SYS_pread64, fd, now, s.st_size, 0);
            if (n != (ssize_t)mapped[i].size || memcmp(now, mapped[i].copy, n)) {
                put("mapped", mapped[i].path, NULL, s.st_ino, 0, now, n);
                free(mapped[i].copy);
                mapped[i].copy = now, mapped[i].size = n;
            } else free(now);
        }
        if (fd >= 0) syscall(SYS_close, fd);
        errno = kept;
    }
}

static void record(const char *kind, const char *path, const char *path2, ino_t inode, off_t offset, const void *bytes, size_t length) {
    if (log_fd < 0) return;
    pthread_mutex_lock(&mutex);
    record_maps();
    put(kind, path, path2, inode, offset, bytes, length);
    pthread_mutex_unlock(&mutex);
}

/* ---- failing ---- */

static int fails(int kind, const char *path) {
    long number = __sync_fetch_and_add(&counted[kind], 1);
    if (!(fail_kinds & (1 << kind)) || fail_at < 0 || (fail_for_good ? number < fail_at : number != fail_at)) return 0;
    if (!*failed) snprintf(failed, sizeof failed, "%s", path);
    errno = fail_errno;
    return 1;
}

/* ---- what tests/file_layer.py calls ---- */

void file_layer_record(const char *folder, const char *log) {
    root_length = snprintf(root, sizeof root, "%s", folder);
    int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0666);
    log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 700);
    syscall(SYS_close, fd);
}

void file_layer_fail(const char *folder, int kinds, long number, int error, int for_good, size_t least_bytes) {
    root_length = snprintf(root, sizeof root, "%s", folder);
    memset(counted, 0, sizeof counted), *failed = 0;
    fail_at = number, fail_errno = error, fail_for_good = for_good, memory_bytes = least_bytes, fail_kinds = kinds;
}

long file_layer_counted(int kind) { return counted[kind]; }
const char *file_layer_failed(void) { return failed; }
void file_layer_mark(const char *text) { record("mark", root, NULL, 1, 0, text, strlen(text)); }

void file_layer_stop(void) {
    if (log_fd >= 0) { record_maps(); syscall(SYS_close, log_fd); }
    log_fd = -1, fail_kinds = 0, root_length = 0, memory_bytes = 0;
}

/* ---- the functions ---- */

static int opened(int folder, const char *name, int flags, mode_t mode, int (*real)(int, const char *, int, mode_t)) {
    char path[PATH_MAX];
    if (!absolute(folder, name, path)) return real(folder, name, flags, mode);
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT);
    if (fails(writes ? OPEN_WRITE : OPEN_READ, path)) return -1;
    int was = inode_of(path) != 0, fd = real(folder, name, flags, mode);
    if (fd >= 0) record(was ? (writes && (flags & O_TRUNC) ? "truncate" : "open") : "create", path, NULL, 0, 0, NULL, 0);
    return fd;
}

#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, int); va_end(a); }
int openat(int folder, const char *name, int flags, ...) { MODE; return opened(folder, name, flags, mode, (void *)REAL(openat)); }
int openat64(int folder, const char *name, int flags, ...) { MODE; return opened(folder, name, flags, mode, (void *)REAL(openat64)); }
int open(const char *name, int flags, ...) { MODE; return opened(AT_FDCWD, name, flags, mode, (void *)REAL(openat)); }
int open64(const char *name, int flags, ...) { MODE; return opened(AT_FDCWD, name, flags, mode, (void *)REAL(openat64)); }
int creat(const char *name, mode_t mode) { return open(name, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return open64(name, O_WRONLY | O_CREAT | O_TRUNC, mode); }

ssize_t read(int fd, void *into, size_t n) {
    char path[PATH_MAX];
    if (path_of(fd, path) && fails(READ, path)) return -1;
    return REAL(read)(fd, into, n);
}
ssize_t pread64(int fd, void *into, size_t n, off_t at) {
    char path[PATH_MAX];
    if (path_of(fd, path) && fails(READ, path)) return -1;
    return REAL(pread64)(fd, into, n, at);
}

ssize_t write(int fd, const void *bytes, size_t n) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return REAL(write)(fd, bytes, n);
    if (fails(WRITE, path)) return -1;
    ssize_t done = REAL(write)(fd, bytes, n);
    if (done >= 0) record("write", path, NULL, 0, lseek(fd, 0, SEEK_CUR) - done, bytes, done);
    return done;
}
static ssize_t pwritten(int fd, const void *bytes, size_t n, off_t at, ssize_t (*real)(int, const void *, size_t, off_t)) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(fd, bytes, n, at);
    if (fails(WRITE, path)) return -1;
    ssize_t done = real(fd, bytes, n, at);
    if (done >= 0) record("write", path, NULL, 0, at, bytes, done);
    return done;
}
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) { return pwritten(fd, bytes, n, at, REAL(pwrite)); }
ssize_t pwrite64(int fd, const void *bytes, size_t n, off_t at) { return pwritten(fd, bytes, n, at, (void *)REAL(pwrite64)); }
ssize_t writev(int fd, const struct iovec *parts, int n) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return REAL(writev)(fd, parts, n);
    ssize_t all = 0;
    for (int i = 0; i < n; i++) {
        ssize_t done = write(fd, parts[i].iov_base, parts[i].iov_len);
        if (done < 0) return all ? all : -1;
        all += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return all;
}
/* they are done without: callers fall back to read and write */
ssize_t copy_file_range(int from, off_t *at, int to, off_t *at2, size_t n, unsigned flags) {
    char path[PATH_MAX];
    if (path_of(to, path)) { errno = EXDEV; return -1; }
    return REAL(copy_file_range)(from, at, to, at2, n, flags);
}
ssize_t sendfile(int to, int from, off_t *at, size_t n) {
    char path[PATH_MAX];
    if (path_of(to, path)) { errno = EINVAL; return -1; }
    return ((ssize_t (*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile"))(to, from, at, n);
}
ssize_t sendfile64(int to, int from, off_t *at, size_t n) { return sendfile(to, from, at, n); }

static int resized(int fd, off_t size, int (*real)(int, off_t)) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(fd, size);
    if (fails(ALLOCATE, path)) return -1;
    int status = real(fd, size);
    if (!status) record("resize", path, NULL, 0, size, NULL, 0);
    return status;
}
int ftruncate(int fd, off_t size) { return resized(fd, size, REAL(ftruncate)); }
int ftruncate64(int fd, off_t size) { return resized(fd, size, (void *)REAL(ftruncate64)); }
static int allocated(int fd, off_t at, off_t n, int (*real)(int, off_t, off_t)) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(fd, at, n);
    if (fails(ALLOCATE, path)) return errno;
    int status = real(fd, at, n);
    struct stat s;
    if (!status && !fstat(fd, &s)) record("resize", path, NULL, 0, s.st_size, NULL, 0);
    return status;
}
int posix_fallocate(int fd, off_t at, off_t n) { return allocated(fd, at, n, REAL(posix_fallocate)); }
int posix_fallocate64(int fd, off_t at, off_t n) { return allocated(fd, at, n, (void *)REAL(posix_fallocate64)); }

static int synced(int fd, int (*real)(int)) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(fd);
    if (fails(SYNC, path)) return -1;
    /* nothing has to reach a disk: what a power cut would leave is computed from the record */
    record("sync", path, NULL, 0, 0, NULL, 0);
    return 0;
}
int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }
int msync(void *at, size_t n, int flags) {
    char line[PATH_MAX + 200], path[PATH_MAX] = "";
    unsigned long from, to;
    if (root_length) {
        FILE *table = fopen("/proc/self/maps", "r");
        while (table && fgets(line, sizeof line, table))
            if (sscanf(line, "%lx-%lx", &from, &to) == 2 && from <= (unsigned long)at && (unsigned long)at < to) {
                char *slash = strchr(line, '/');
                if (slash) { slash[strcspn(slash, "\n")] = 0; snprintf(path, sizeof path, "%s", slash); }
            }
        if (table) fclose(table);
        if (below(path)) {
            if (fails(SYNC, path)) return -1;
            record("sync", path, NULL, 0, 0, NULL, 0);
            return 0;
        }
    }
    return REAL(msync)(at, n, flags);
}

static void *map(void *at, size_t n, int protection, int flags, int fd, off_t offset, void *(*real)(void *, size_t, int, int, int, off_t)) {
    char path[PATH_MAX];
    if (fd < 0 || !path_of(fd, path)) return real(at, n, protection, flags, fd, offset);
    if (fails(MMAP, path)) return MAP_FAILED;
    void *where = real(at, n, protection, flags, fd, offset);
    if (where != MAP_FAILED && (protection & PROT_WRITE) && (flags & MAP_SHARED) && log_fd >= 0 && maps < 256) {
        pthread_mutex_lock(&mutex);
        struct stat s;
        int known = 0;
        fstat(fd, &s);
        for (int i = 0; i < maps; i++) known |= mapped[i].inode == s.st_ino && !strcmp(mapped[i].path, path);
        if (!known) {
            snprintf(mapped[maps].path, PATH_MAX, "%s", path);
            mapped[maps].inode = s.st_ino, mapped[maps].size = s.st_size, mapped[maps].copy = malloc(s.st_size + 1);
            syscall(SYS_pread64, fd, mapped[maps].copy, s.st_size, 0);
            maps++;
        }
        pthread_mutex_unlock(&mutex);
    }
    return where;
}
void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) { return map(at, n, protection, flags, fd, offset, REAL(mmap)); }
void *mmap64(void *at, size_t n, int protection, int flags, int fd, off_t offset) { return map(at, n, protection, flags, fd, offset, (void *)REAL(mmap64)); }

int renameat(int folder, const char *from, int folder2, const char *to) {
    char path[PATH_MAX], path2[PATH_MAX];
    int in = absolute(folder, from, path), in2 = absolute(folder2, to, path2);
    if (!in && !in2) return REAL(renameat)(folder, from, folder2, to);
    if (fails(RENAME, path2)) return -1;
    ino_t inode = inode_of(path);
    int status = REAL(renameat)(folder, from, folder2, to);
    if (!status) record("rename", path, path2, inode, 0, NULL, 0);
    return status;
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }
int renameat2(int folder, const char *from, int folder2, const char *to, unsigned flags) {
    char path[PATH_MAX];
    if (flags || !absolute(folder2, to, path)) return REAL(renameat2)(folder, from, folder2, to, flags);
    return renameat(folder, from, folder2, to);
}
int linkat(int folder, const char *from, int folder2, const char *to, int flags) {
    char path[PATH_MAX], path2[PATH_MAX];
    absolute(folder, from, path);
    if (!absolute(folder2, to, path2)) return REAL(linkat)(folder, from, folder2, to, flags);
    if (fails(RENAME, path2)) return -1;
    int status = REAL(linkat)(folder, from, folder2, to, flags);
    if (!status) record("link", path, path2, inode_of(path2), 0, NULL, 0);
    return status;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    if (!absolute(folder, name, path)) return REAL(unlinkat)(folder, name, flags);
    ino_t inode = inode_of(path);
    if (inode && fails(UNLINK, path)) return -1;
    int status = REAL(unlinkat)(folder, name, flags);
    if (!status) record("unlink", path, NULL, inode, 0, NULL, 0);
    return status;
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!absolute(folder, name, path)) return REAL(mkdirat)(folder, name, mode);
    if (!inode_of(path) && parent_of(path) && fails(MKDIR, path)) return -1;
    int status = REAL(mkdirat)(folder, name, mode);
    if (!status) record("mkdir", path, NULL, 0, 0, NULL, 0);
    return status;
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int posix_memalign(void **into, size_t alignment, size_t n) {
    if (memory_bytes && n >= memory_bytes) {
        int kept = errno;
        if (fails(MEMORY, "memory")) { errno = kept; return ENOMEM; }
    }
    return REAL(posix_memalign)(into, alignment, n);
}
