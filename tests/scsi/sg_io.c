/*
 * sg_io.c - a SCSI disk for programs that speak to one by SG_IO, without one and without a kernel that has one: preloaded,
 * it opens SG_IO_DISK as a connection to the socket SG_IO_SOCKET, and sends each command there.
 *
 *     request:  length of CDB, of data-out, room for data-in (32 bits each); CDB; data-out        no CDB: a reset
 *     answer:   status, length of sense data, of data-in; sense data; data-in
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <scsi/sg.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

enum {
	MOST = 1024,
	VERSION = 30536,
	RESERVED = 256 << 10,
	BLOCK_LENGTH = 512,
	READ_BLOCK_LENGTH = 0x1268 /* BLKSSZGET */
};

static bool ours[MOST];

static bool move(int fd, void *data, size_t length, bool out)
{
	for (char *at = data; length;) {
		ssize_t done = out ? send(fd, at, length, MSG_NOSIGNAL) : recv(fd, at, length, 0);
		if (done <= 0)
			return false;
		at += done;
		length -= (size_t)done;
	}
	return true;
}

static int connected(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strncpy(address.sun_path, getenv("SG_IO_SOCKET"), sizeof address.sun_path - 1);
	if (fd < 0 || fd >= MOST || connect(fd, (struct sockaddr *)&address, sizeof address))
		return -1;
	ours[fd] = true;
	return fd;
}

static int command(int fd, struct sg_io_hdr *io)
{
	bool out = io->dxfer_direction == SG_DXFER_TO_DEV;
	uint32_t request[3] = { io->cmd_len, out ? io->dxfer_len : 0, out ? 0 : io->dxfer_len }, answer[3];
	char sense[252];

	if (!move(fd, request, sizeof request, true) || !move(fd, io->cmdp, request[0], true) ||
	    !move(fd, io->dxferp, request[1], true) || !move(fd, answer, sizeof answer, false) ||
	    answer[1] > sizeof sense || answer[2] > request[2] || !move(fd, sense, answer[1], false) ||
	    !move(fd, io->dxferp, answer[2], false)) {
		errno = EIO;
		return -1;
	}
	io->status = (unsigned char)answer[0];
	io->masked_status = (unsigned char)(answer[0] >> 1 & 0x1F);
	io->sb_len_wr = (unsigned char)(answer[1] < io->mx_sb_len ? answer[1] : io->mx_sb_len);
	memcpy(io->sbp, sense, io->sb_len_wr);
	io->driver_status = answer[1] ? 8 : 0; /* there are sense data */
	io->info = answer[0] ? SG_INFO_CHECK : SG_INFO_OK;
	io->host_status = io->msg_status = 0;
	io->resid = (int)(request[1] + request[2] - (out ? request[1] : answer[2]));
	io->duration = 0;
	return 0;
}

static int reset(int fd)
{
	uint32_t request[3] = { 0 }, answer[3];

	return move(fd, request, sizeof request, true) && move(fd, answer, sizeof answer, false) ? 0 : -1;
}

int ioctl(int fd, unsigned long request, ...)
{
	static int (*real)(int, unsigned long, ...);
	va_list arguments;

	va_start(arguments, request);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "ioctl");
	if (fd < 0 || fd >= MOST || !ours[fd])
		return real(fd, request, argument);
	switch (request) {
	case SG_IO: return command(fd, argument);
	case SG_SCSI_RESET: return reset(fd);
	case SG_GET_VERSION_NUM: *(int *)argument = VERSION; return 0;
	case SG_GET_RESERVED_SIZE: *(int *)argument = RESERVED; return 0;
	case READ_BLOCK_LENGTH: *(int *)argument = BLOCK_LENGTH; return 0;
	case SG_SET_RESERVED_SIZE:
	case SG_SET_TIMEOUT: return 0;
	default: errno = ENOTTY; return -1;
	}
}

static int opened(const char *name, const char *path, int flags, mode_t mode)
{
	int (*real)(const char *, int, ...);

	if (!strcmp(path, getenv("SG_IO_DISK")))
		return connected();
	*(void **)&real = dlsym(RTLD_NEXT, name);
	return real(path, flags, mode);
}

#define OPEN(name)                                                                           \
	int name(const char *path, int flags, ...)                                           \
	{                                                                                    \
		va_list arguments;                                                           \
		va_start(arguments, flags);                                                  \
		mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0; \
		va_end(arguments);                                                           \
		return opened(#name, path, flags, mode);                                     \
	}

OPEN(open)
OPEN(open64)

/* What a program calls that was compiled with _FORTIFY_SOURCE. */
int __open_2(const char *path, int flags)
{
	return opened("open", path, flags, 0);
}

int __open64_2(const char *path, int flags)
{
	return opened("open64", path, flags, 0);
}

/* A generic device, to those who look at what they are given. */
static int looked(const char *name, const char *path, void *found)
{
	int (*real)(const char *, void *);
	struct stat generic = { .st_mode = S_IFCHR | 0600, .st_rdev = makedev(21, 0) };

	if (!strcmp(path, getenv("SG_IO_DISK"))) {
		memcpy(found, &generic, sizeof generic);
		return 0;
	}
	*(void **)&real = dlsym(RTLD_NEXT, name);
	return real(path, found);
}

int stat(const char *path, struct stat *found)
{
	return looked("stat", path, found);
}

int stat64(const char *path, struct stat64 *found)
{
	_Static_assert(sizeof *found == sizeof(struct stat), "they are the same on every 64-bit machine");
	return looked("stat64", path, found);
}

int close(int fd)
{
	static int (*real)(int);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "close");
	if (fd >= 0 && fd < MOST)
		ours[fd] = false;
	return real(fd);
}
