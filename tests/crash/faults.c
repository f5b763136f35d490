/*
 * faults.c - system calls that fail on request, as they do when a disk breaks or is full, and each noted in the log.
 *
 * VSTORE_CRASH_FAIL=KIND:FIRST:LAST:ERRNO: of the calls of one kind on watched files those of these numbers, counted from
 * 0, change nothing and fail with this errno. A write or read that is to fail with errno 0 is done by half, as far
 * as it is longer than a sector.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "recorder.h"

enum { SECTOR = 512 }; /* a disk never does less of a write */

static unsigned failing, first, last, error, seen;

void faults_begin(void)
{
	const char *fault = getenv("VSTORE_CRASH_FAIL");

	if (fault && *fault && sscanf(fault, "%u:%u:%u:%u", &failing, &first, &last, &error) != 4)
		die("VSTORE_CRASH_FAIL");
}

bool fails(uint32_t kind, int file)
{
	if (file < 0 || kind != failing)
		return false;
	unsigned number = seen++;
	if (number < first || number > last)
		return false;
	note(FAILURE, file, kind, error, 0, NULL, 0);
	errno = (int)error;
	return true;
}

bool fails_reads(void)
{
	return failing == READ;
}

size_t half_of(size_t length)
{
	return length > SECTOR ? length / 2 / SECTOR * SECTOR : length;
}

ssize_t half_written(int fd, const struct iovec *iov, int count, int64_t offset, int flags)
{
	struct iovec parts[IOV_MAX];
	size_t left = 0;
	int used = 0;

	for (int i = 0; i < count; i++)
		left += iov[i].iov_len;
	left = half_of(left);
	for (; used < count && used < IOV_MAX && left; used++) {
		parts[used] = iov[used];
		if (parts[used].iov_len > left)
			parts[used].iov_len = left;
		left -= parts[used].iov_len;
	}
	return syscall(SYS_pwritev2, fd, parts, (long)used, (long)offset, 0L, flags);
}
