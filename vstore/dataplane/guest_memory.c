/*
 * guest_memory.c - the guest's memory as the front-end shares it: regions, translation, scatter lists, dirty log.
 * Everything the guest names by address passes through guest_memory_region(), one region at a time.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

const struct region *guest_memory_region(const struct guest_memory *memory, uint64_t guest)
{
	uint32_t low = 0, high = memory->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		const struct region *region = &memory->regions[middle];

		if (guest < region->guest)
			high = middle;
		else if (guest - region->guest >= region->size)
			low = middle + 1;
		else
			return region;
	}
	return NULL;
}

void *guest_memory_at_user(const struct guest_memory *memory, uint64_t user, uint64_t length)
{
	for (uint32_t i = 0; i < memory->count; i++) {
		const struct region *region = &memory->regions[i];

		if (user >= region->user && user - region->user < region->size &&
		    length <= region->size - (user - region->user))
			return region->host + (user - region->user);
	}
	return NULL;
}

static bool overlaps(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
	return a < b + b_size && b < a + a_size;
}

static int check_new_region(const struct guest_memory *memory, const struct region *wanted, int fd, uint64_t offset)
{
	uint64_t end;
	struct stat status;

	if (!wanted->size)
		return -EINVAL;
	/* QEMU's last region may end at 2^64 - 1 exactly, never beyond */
	if (__builtin_add_overflow(wanted->guest, wanted->size, &end) ||
	    __builtin_add_overflow(wanted->user, wanted->size, &end) ||
	    __builtin_add_overflow(offset, wanted->size, &end))
		return -EOVERFLOW;
	if (fstat(fd, &status))
		return -errno;
	if (S_ISREG(status.st_mode) && end > (uint64_t)status.st_size)
		return -EFBIG;
	if (memory->count >= VS_MAX_REGIONS)
		return -ENOSPC;
	for (uint32_t i = 0; i < memory->count; i++) {
		const struct region *have = &memory->regions[i];

		if (overlaps(wanted->guest, wanted->size, have->guest, have->size) ||
		    overlaps(wanted->user, wanted->size, have->user, have->size))
			return -EEXIST;
	}
	return 0;
}

int guest_memory_add(struct guest_memory *memory, const struct region *wanted, int fd, uint64_t offset)
{
	struct region region = *wanted;
	int error = check_new_region(memory, wanted, fd, offset);

	if (error)
		return error;
	/* hugetlbfs maps only whole huge pages, so map from the start of the file */
	region.mapping_length = offset + region.size;
	region.mapping = mmap(NULL, region.mapping_length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (region.mapping == MAP_FAILED)
		return -errno;
	madvise(region.mapping, region.mapping_length, MADV_DONTDUMP);
	region.host = (uint8_t *)region.mapping + offset;
	struct region *regions = realloc(memory->regions, (memory->count + 1) * sizeof(*regions));
	if (!regions) {
		munmap(region.mapping, region.mapping_length);
		return -ENOMEM;
	}
	uint32_t at = memory->count++;
	for (; at > 0 && regions[at - 1].guest > region.guest; at--)
		regions[at] = regions[at - 1];
	regions[at] = region;
	memory->regions = regions;
	return 0;
}

int guest_memory_remove(struct guest_memory *memory, uint64_t guest, uint64_t size, uint64_t user)
{
	for (uint32_t i = 0; i < memory->count; i++) {
		struct region *region = &memory->regions[i];

		if (region->guest != guest || region->size != size || region->user != user)
			continue;
		munmap(region->mapping, region->mapping_length);
		memmove(region, region + 1, (--memory->count - i) * sizeof(*region));
		return 0;
	}
	return -ENOENT;
}

static void drop_log(struct guest_memory *memory)
{
	if (memory->log_mapping)
		munmap(memory->log_mapping, memory->log_mapping_length);
	memory->log = NULL;
	memory->log_mapping = NULL;
	memory->log_length = 0;
}

void guest_memory_clear(struct guest_memory *memory)
{
	for (uint32_t i = 0; i < memory->count; i++)
		munmap(memory->regions[i].mapping, memory->regions[i].mapping_length);
	free(memory->regions);
	memory->regions = NULL;
	memory->count = 0;
	drop_log(memory);
}

int guest_memory_set_log(struct guest_memory *memory, int fd, uint64_t size, uint64_t offset)
{
	struct stat status;
	uint64_t end;

	if (fd < 0) {
		drop_log(memory);
		return 0;
	}
	if (!size || __builtin_add_overflow(offset, size, &end))
		return -EINVAL;
	if (fstat(fd, &status))
		return -errno;
	if (end > (uint64_t)status.st_size)
		return -EFBIG;
	for (uint32_t i = 0; i < memory->count; i++) {
		uint64_t last = memory->regions[i].guest + memory->regions[i].size - 1;

		if (last >> PAGE_BITS >> 3 >= size)
			return -EFBIG;
	}
	void *mapping = mmap(NULL, end, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mapping == MAP_FAILED)
		return -errno;
	drop_log(memory);
	memory->log_mapping = mapping;
	memory->log_mapping_length = end;
	memory->log = (_Atomic uint8_t *)mapping + offset;
	memory->log_length = size;
	return 0;
}

void guest_memory_log(const struct guest_memory *memory, uint64_t guest, uint64_t length)
{
	if (!memory->log || !length)
		return;
	for (uint64_t page = guest >> PAGE_BITS; page <= (guest + length - 1) >> PAGE_BITS; page++) {
		/* a region added after the log was set may lie beyond it: the front-end sends a larger log then */
		if (page >> 3 >= memory->log_length)
			return;
		atomic_fetch_or_explicit(&memory->log[page >> 3], (uint8_t)(1u << (page & 7)), memory_order_release);
	}
}

void guest_memory_log_host(const struct guest_memory *memory, const void *host, uint64_t length)
{
	for (uint32_t i = 0; i < memory->count; i++) {
		const struct region *region = &memory->regions[i];
		const uint8_t *at = host;

		if (at >= region->host && (uint64_t)(at - region->host) < region->size) {
			guest_memory_log(memory, region->guest + (uint64_t)(at - region->host), length);
			return;
		}
	}
}

/* The next stretch of at most `length` bytes under the cursor; steps over it. */
static struct iovec cursor_next(struct cursor *at, uint64_t length)
{
	struct iovec piece = { (uint8_t *)at->iov->iov_base + at->skip, at->iov->iov_len - at->skip };

	if (piece.iov_len > length) {
		piece.iov_len = length;
		at->skip += length;
	} else {
		at->iov++;
		at->count--;
		at->skip = 0;
	}
	return piece;
}

void cursor_copy_out(struct cursor *at, void *to, uint64_t length)
{
	for (uint8_t *end = (uint8_t *)to + length, *p = to; p < end && at->count;) {
		struct iovec piece = cursor_next(at, (uint64_t)(end - p));

		memcpy(p, piece.iov_base, piece.iov_len);
		p += piece.iov_len;
	}
}

void cursor_copy_in(struct cursor *at, void *from, uint64_t length)
{
	for (const uint8_t *end = (const uint8_t *)from + length, *p = from; p < end && at->count;) {
		struct iovec piece = cursor_next(at, (uint64_t)(end - p));

		memcpy(piece.iov_base, p, piece.iov_len);
		p += piece.iov_len;
	}
}

void cursor_fill_zero(struct cursor *at, void *buffer, uint64_t length)
{
	(void)buffer;
	while (length && at->count) {
		struct iovec piece = cursor_next(at, length);

		memset(piece.iov_base, 0, piece.iov_len);
		length -= piece.iov_len;
	}
}

void cursor_skip(struct cursor *at, uint64_t length)
{
	while (length && at->count)
		length -= cursor_next(at, length).iov_len;
}

int cursor_guarded(cursor_move *move, struct cursor *at, void *buffer, uint64_t length)
{
	sigjmp_buf here;
	sigjmp_buf *outer = vs_fault_guard;

	if (sigsetjmp(here, 0)) {
		vs_fault_guard = outer;
		return -EFAULT;
	}
	vs_fault_guard = &here;
	move(at, buffer, length);
	vs_fault_guard = outer;
	return 0;
}
