/*
 * recorder.c - an LD_PRELOAD library that notes, in the order in which they took effect, all changes of the files in one
 * folder and every barrier, whoever makes them: Python or C, any thread, any process that inherits it.
 *
 *      vstore -- pwritev2, fallocate, fdatasync ... --> recorder --> kernel
 *                                                          |
 *                                                        log: record, record, mark, record ...
 *
 * One mutex is held from before the call until its record is in the log, so the log's order is the order of effects.
 * The log is opened for appending, so that clients in other processes may add marks of their own: a mark written after an
 * answer came stands behind everything that the answer rests on. What cannot be seen here is refused instead: a shared
 * writable mapping fails (its users then make plain calls; where reads are to fail, any mapping does), and so does setting
 * up io_uring. Of reads only the number counts.
 *
 * VSTORE_CRASH_FOLDER: absolute path of the folder whose files are watched. VSTORE_CRASH_LOG: the log.
 * VSTORE_CRASH_REFUSE=punch: no hole can be punched, as on a file system that has none.
 * VSTORE_CRASH_FAIL: what is to fail, see faults.c.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "recorder.h"

enum { DURABLE = 1, KEEP_SIZE = 2 }; /* flags of a record */
enum { MOST_FILES = 4096, LOG_DESCRIPTOR = 700 };

/* fs/ioctl.c: what any file system serves by the code of fallocate(2) with FALLOC_FL_KEEP_SIZE. */
#define FS_IOC_RESVSP64   0x4030582Aul
#define FS_IOC_UNRESVSP64 0x4030582Bul
#define FS_IOC_ZERO_RANGE 0x40305839ul

struct space { /* struct space_resv */
	int16_t type, whence;
	int64_t start, length;
	int32_t system;
	uint32_t process, pad[4];
};

struct record {
	uint32_t kind, file;
	uint64_t offset, length;
	uint32_t flags, payload; /* bytes that follow */
};

struct known {
	ino_t inode;
	int id; /* -1: not in the folder */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct known known[MOST_FILES];
static int known_count, log_descriptor = -1;
static char folder[PATH_MAX];
static dev_t device;
static bool refuses_punch;

void die(const char *why)
{
	fprintf(stderr, "recorder: %s: %s\n", why, strerror(errno));
	abort();
}

void note(uint32_t kind, int file, uint64_t offset, uint64_t length, uint32_t flags, const struct iovec *data,
	  int count)
{
	struct record record = { kind, (uint32_t)file, offset, length, flags, 0 };
	struct iovec parts[IOV_MAX] = { { &record, sizeof(record) } };
	uint64_t left = data ? length : 0;
	int used = 1;

	record.payload = (uint32_t)left;
	for (int i = 0; i < count && left && used < IOV_MAX; i++) {
		parts[used] = data[i];
		if (parts[used].iov_len > left)
			parts[used].iov_len = left;
		left -= parts[used++].iov_len;
	}
	ssize_t whole = (ssize_t)(sizeof(record) + record.payload);
	if (left || syscall(SYS_writev, log_descriptor, parts, used) != whole)
		die("the log takes no more");
}

static int remember(ino_t inode, const char *name)
{
	static int next_id;
	int id = name ? (int)(((unsigned)getpid() & 0x7FFFF) << 12) + next_id++ : -1;

	if (known_count == MOST_FILES)
		die("too many files");
	known[known_count++] = (struct known){ inode, id };
	if (name) {
		struct iovec text = { (void *)(uintptr_t)name, strlen(name) };
		note(FILE_SEEN, id, 0, text.iov_len, 0, &text, 1);
	}
	return id;
}

/* The number of a watched file, -1 for any other. Under the lock. */
static int watched(int fd)
{
	char link[64], path[PATH_MAX];
	struct stat status;

	if (log_descriptor < 0 || fstat(fd, &status) || status.st_dev != device || !S_ISREG(status.st_mode))
		return -1;
	for (int i = 0; i < known_count; i++)
		if (known[i].inode == status.st_ino)
			return known[i].id;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, sizeof(path) - 1);
	if (length < 0)
		die("a file has no name");
	path[length] = 0;
	size_t prefix = strlen(folder);
	bool inside = !strncmp(path, folder, prefix) && path[prefix] == '/';
	return remember(status.st_ino, inside ? path + prefix + 1 : NULL);
}

/* Reads the environment: when the library is loaded, or called by name in a process that was forked behind that. */
__attribute__((constructor)) void recorder_begin(void)
{
	const char *where = getenv("VSTORE_CRASH_FOLDER"), *log = getenv("VSTORE_CRASH_LOG");
	const char *refuse = getenv("VSTORE_CRASH_REFUSE");
	struct dirent *entry;
	struct stat status;

	if (!where || !log)
		return;
	if (!realpath(where, folder) || stat(folder, &status))
		die(where);
	device = status.st_dev;
	refuses_punch = refuse && !strcmp(refuse, "punch");
	faults_begin();
	int fd = open(log, O_WRONLY | O_APPEND | O_CLOEXEC);
	log_descriptor = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, LOG_DESCRIPTOR);
	if (log_descriptor < 0)
		die(log);
	close(fd);
	DIR *directory = opendir(folder); /* now, because a sandbox may forbid to ask for names later */
	while (directory && (entry = readdir(directory)))
		if (!fstatat(dirfd(directory), entry->d_name, &status, 0) && S_ISREG(status.st_mode))
			remember(status.st_ino, entry->d_name);
	if (directory)
		closedir(directory);
}

/* ---- writes ---- */

static ssize_t write_now(int fd, const struct iovec *iov, int count, int64_t offset, int flags, int file)
{
	if (fails(WRITE, file))
		return errno ? -1 : half_written(fd, iov, count, offset, flags);
	if (offset < 0 && !flags)
		return syscall(SYS_writev, fd, iov, (long)count);
	return syscall(SYS_pwritev2, fd, iov, (long)count, (long)offset, 0L, flags);
}

static ssize_t written(int fd, const struct iovec *iov, int count, int64_t offset, int flags)
{
	pthread_mutex_lock(&lock);
	int file = watched(fd);
	int64_t at = offset >= 0 ? offset : lseek(fd, 0, SEEK_CUR);
	ssize_t done = write_now(fd, iov, count, offset, flags, file);
	int error = errno;
	if (file >= 0 && done > 0)
		note(WRITE, file, (uint64_t)at, (uint64_t)done, flags & (RWF_DSYNC | RWF_SYNC) ? DURABLE : 0, iov,
		     count);
	pthread_mutex_unlock(&lock);
	errno = error;
	return done;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset)
{
	struct iovec iov = { (void *)(uintptr_t)data, length };

	return written(fd, &iov, 1, offset, 0);
}

ssize_t write(int fd, const void *data, size_t length)
{
	struct iovec iov = { (void *)(uintptr_t)data, length };

	return log_descriptor < 0 ? syscall(SYS_write, fd, data, length) : written(fd, &iov, 1, -1, 0);
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
	return written(fd, iov, count, -1, 0);
}

ssize_t pwritev64(int fd, const struct iovec *iov, int count, off_t offset)
{
	return written(fd, iov, count, offset, 0);
}

ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
	return written(fd, iov, count, offset, flags);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) __attribute__((alias("pwrite64")));
ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset) __attribute__((alias("pwritev64")));
ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
	__attribute__((alias("pwritev64v2")));

/* ---- reads ---- */

/* Whether one may be done, and how many bytes of it. */
static bool readable(int fd, size_t *length)
{
	pthread_mutex_lock(&lock);
	int file = watched(fd);
	bool refused = fails(READ, file);
	if (file >= 0 && !refused)
		note(READ, file, 0, *length, 0, NULL, 0);
	pthread_mutex_unlock(&lock);
	if (refused && !errno)
		*length = half_of(*length);
	return !refused || !errno;
}

ssize_t pread64(int fd, void *data, size_t length, off_t offset)
{
	return readable(fd, &length) ? syscall(SYS_pread64, fd, data, length, offset) : -1;
}

ssize_t preadv64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
	struct iovec parts[IOV_MAX];
	size_t length = 0;
	int used = 0;

	for (int i = 0; i < count; i++)
		length += iov[i].iov_len;
	if (!readable(fd, &length))
		return -1;
	for (; used < count && used < IOV_MAX && length; used++) {
		parts[used] = iov[used];
		if (parts[used].iov_len > length)
			parts[used].iov_len = length;
		length -= parts[used].iov_len;
	}
	return syscall(SYS_preadv2, fd, parts, (long)used, (long)offset, 0L, flags);
}

ssize_t preadv64(int fd, const struct iovec *iov, int count, off_t offset)
{
	return preadv64v2(fd, iov, count, offset, 0);
}

ssize_t pread(int fd, void *data, size_t length, off_t offset) __attribute__((alias("pread64")));
ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset) __attribute__((alias("preadv64")));
ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
	__attribute__((alias("preadv64v2")));

/* ---- what the kernel moves ---- */

/* The bytes that the kernel has moved into a file are read back for the log. Under the lock. */
static void note_moved(int fd, int file, int64_t offset, size_t length)
{
	uint8_t buffer[65536];

	while (length) {
		size_t take = length < sizeof(buffer) ? length : sizeof(buffer);
		ssize_t have = syscall(SYS_pread64, fd, buffer, take, offset);
		if (have <= 0)
			die("what was copied cannot be read");
		note(WRITE, file, (uint64_t)offset, (uint64_t)have, 0, &(struct iovec){ buffer, (size_t)have }, 1);
		offset += have;
		length -= (size_t)have;
	}
}

ssize_t copy_file_range(int from, off_t *from_offset, int to, off_t *to_offset, size_t length, unsigned flags)
{
	if (!readable(from, &length))
		return -1;
	pthread_mutex_lock(&lock);
	int file = watched(to);
	int64_t at = to_offset ? *to_offset : lseek(to, 0, SEEK_CUR);
	ssize_t done = syscall(SYS_copy_file_range, from, from_offset, to, to_offset, length, flags);
	int error = errno;
	if (file >= 0 && done > 0)
		note_moved(to, file, at, (size_t)done);
	pthread_mutex_unlock(&lock);
	errno = error;
	return done;
}

ssize_t sendfile64(int to, int from, off_t *offset, size_t length)
{
	pthread_mutex_lock(&lock);
	int file = watched(to);
	int64_t at = file >= 0 ? lseek(to, 0, SEEK_CUR) : 0;
	ssize_t done = syscall(SYS_sendfile, to, from, offset, length);
	int error = errno;
	if (file >= 0 && done > 0)
		note_moved(to, file, at, (size_t)done);
	pthread_mutex_unlock(&lock);
	errno = error;
	return done;
}

ssize_t sendfile(int to, int from, off_t *offset, size_t length) __attribute__((alias("sendfile64")));

/* ---- length and space ---- */

int ftruncate64(int fd, off_t length)
{
	pthread_mutex_lock(&lock);
	int file = watched(fd), result = fails(TRUNCATE, file) ? -1 : (int)syscall(SYS_ftruncate, fd, length);
	int error = errno;
	if (file >= 0 && !result)
		note(TRUNCATE, file, 0, (uint64_t)length, 0, NULL, 0);
	pthread_mutex_unlock(&lock);
	errno = error;
	return result;
}

int ftruncate(int fd, off_t length) __attribute__((alias("ftruncate64")));

static int space_changed(int fd, int mode, int64_t offset, int64_t length)
{
	bool punches = mode & FALLOC_FL_PUNCH_HOLE, zeroes = mode & FALLOC_FL_ZERO_RANGE;
	int result = -1;

	if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		die("a mode of fallocate that no test knows");
	pthread_mutex_lock(&lock);
	int file = watched(fd), error = EOPNOTSUPP;
	if (fails(punches ? PUNCH : zeroes ? ZERO : ALLOCATE, file)) {
		error = errno;
	} else if (file < 0 || !refuses_punch || !(punches || zeroes)) {
		result = (int)syscall(SYS_fallocate, fd, mode, offset, length);
		error = errno;
	}
	if (file >= 0 && !result)
		note(punches  ? PUNCH
		     : zeroes ? ZERO
			      : ALLOCATE,
		     file, (uint64_t)offset, (uint64_t)length, mode & FALLOC_FL_KEEP_SIZE ? KEEP_SIZE : 0, NULL, 0);
	pthread_mutex_unlock(&lock);
	errno = error;
	return result;
}

int fallocate64(int fd, int mode, off_t offset, off_t length)
{
	return space_changed(fd, mode, offset, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length) __attribute__((alias("fallocate64")));

int posix_fallocate64(int fd, off_t offset, off_t length)
{
	return space_changed(fd, 0, offset, length) ? errno : 0;
}

int posix_fallocate(int fd, off_t offset, off_t length) __attribute__((alias("posix_fallocate64")));

int ioctl(int fd, unsigned long request, ...)
{
	va_list rest;

	va_start(rest, request);
	void *argument = va_arg(rest, void *);
	va_end(rest);
	const struct space *space = argument;
	switch (request) {
	case FS_IOC_RESVSP64: return space_changed(fd, FALLOC_FL_KEEP_SIZE, space->start, space->length);
	case FS_IOC_UNRESVSP64:
		return space_changed(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, space->start, space->length);
	case FS_IOC_ZERO_RANGE:
		return space_changed(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE, space->start, space->length);
	default: return (int)syscall(SYS_ioctl, fd, request, argument);
	}
}

/* ---- barriers ---- */

static int made_durable(int fd, long call)
{
	pthread_mutex_lock(&lock);
	int file = watched(fd), result = fails(BARRIER, file) ? -1 : (int)syscall(call, fd), error = errno;
	if (file >= 0 && !result)
		note(BARRIER, file, 0, 0, 0, NULL, 0);
	pthread_mutex_unlock(&lock);
	errno = error;
	return result;
}

int fdatasync(int fd)
{
	return made_durable(fd, SYS_fdatasync);
}

int fsync(int fd)
{
	return made_durable(fd, SYS_fsync);
}

/* ---- what goes past us ---- */

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	if (fd >= 0 && log_descriptor >= 0 && (protection & PROT_WRITE || fails_reads()) && flags & MAP_SHARED) {
		pthread_mutex_lock(&lock);
		int file = watched(fd);
		pthread_mutex_unlock(&lock);
		if (file >= 0) {
			errno = EACCES;
			return MAP_FAILED;
		}
	}
	return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
	__attribute__((alias("mmap64")));

int io_uring_queue_init_params(unsigned entries, void *ring, void *parameters)
{
	(void)entries, (void)ring, (void)parameters;
	return -EPERM;
}
