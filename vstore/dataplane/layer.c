/*
 * layer.c - one file under a volume: its mapping, and which of its pages a copy may be taken from.
 *
 * A system call for every cached 4 KiB read costs more than the copy itself. So a regular file is also mapped, and a bit
 * a page says that an earlier read found the page in memory: then memcpy() does. Should the kernel have dropped the page
 * since, the copy takes a fault and waits for the disk, which is slow but right; io.c watches for such faults and forgets
 * all bits when it sees one. A file cut short by others raises SIGBUS, which fault.c turns into an ordinary read.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

void volume_retire(struct vs_volume *volume, void *memory, size_t length)
{
	struct retired *retired = malloc(sizeof(*retired));

	if (!retired)
		return;                              /* a leak is better than a reader on freed memory */
	*retired = (struct retired){ volume->retired, memory, length };
	volume->retired = retired;
}

/* Maps the file for copying from memory; a file that cannot be mapped is simply read. */
void layer_map(struct vs_volume *volume, struct layer *layer)
{
	bool memory = layer->flags & VS_FILE_MEMORY;
	uint64_t old_length = atomic_load(&layer->mapping_length);
	struct stat status;

	if (layer->flags & (VS_FILE_NULL | VS_FILE_DIRECT | VS_FILE_BLOCK_DEVICE) || fstat(layer->fd, &status))
		return;
	uint64_t length = (uint64_t)status.st_size & ~(uint64_t)((1u << PAGE_BITS) - 1);
	if (memory)
		length = (uint64_t)status.st_size;
	if (length == old_length || !length)
		return;
	uint8_t *mapping = mmap(NULL, length, memory ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_NORESERVE,
				layer->fd, 0);
	uint64_t words = (length >> PAGE_BITS) / 64 + 1;
	_Atomic uint64_t *resident = calloc(words, sizeof(*resident));
	if (mapping == MAP_FAILED || !resident) {
		free((void *)resident);
		return;
	}
	madvise(mapping, length, MADV_DONTDUMP);
	atomic_store(&layer->mapping_length, 0);     /* readers go to the file while the two pointers change */
	if (old_length) {
		volume_retire(volume, layer->mapping, old_length);
		volume_retire(volume, (void *)layer->resident, 0);
	}
	atomic_store(&layer->mapping, mapping);
	atomic_store(&layer->resident, resident);
	atomic_store(&layer->mapping_length, length);
}

bool layer_resident(struct layer *layer, uint64_t offset, uint64_t length)
{
	uint64_t mapped = atomic_load_explicit(&layer->mapping_length, memory_order_acquire);

	if (length > mapped || offset > mapped - length)
		return false;
	if (layer->flags & VS_FILE_MEMORY)
		return true;
	_Atomic uint64_t *resident = atomic_load_explicit(&layer->resident, memory_order_relaxed);
	for (uint64_t page = offset >> PAGE_BITS; page <= (offset + length - 1) >> PAGE_BITS; page++)
		if (!(atomic_load_explicit(&resident[page / 64], memory_order_relaxed) >> (page % 64) & 1))
			return false;
	return true;
}

static void mark(struct layer *layer, uint64_t first, uint64_t end, bool set)
{
	_Atomic uint64_t *resident = atomic_load_explicit(&layer->resident, memory_order_relaxed);

	for (uint64_t page = first; page < end; page++) {
		uint64_t bit = 1ull << (page % 64);
		if (set)
			atomic_fetch_or_explicit(&resident[page / 64], bit, memory_order_relaxed);
		else
			atomic_fetch_and_explicit(&resident[page / 64], ~bit, memory_order_relaxed);
	}
}

/* On tmpfs a look through a mapping would allocate a hole, so only what is known to be data may be marked there. */
static bool data_on_tmpfs(const struct layer *layer, uint64_t *first, uint64_t *end)
{
	enum { AHEAD = 512 };                        /* pages: what is allocated on tmpfs is resident, so mark more at once */
	off_t from = (off_t)(*first << PAGE_BITS), hole;

	if (lseek(layer->fd, from, SEEK_DATA) != from)
		return false;
	hole = lseek(layer->fd, from, SEEK_HOLE);
	if (hole < from)
		return false;
	if (*end < *first + AHEAD)
		*end = *first + AHEAD;
	if (*end > (uint64_t)hole >> PAGE_BITS)
		*end = (uint64_t)hole >> PAGE_BITS;
	return true;
}

void layer_note_resident(struct layer *layer, uint64_t offset, uint64_t length, bool written)
{
	uint64_t mapped = atomic_load_explicit(&layer->mapping_length, memory_order_acquire) >> PAGE_BITS;
	uint64_t first = offset >> PAGE_BITS, end = (offset + length + (1u << PAGE_BITS) - 1) >> PAGE_BITS;

	if (!mapped || (layer->flags & VS_FILE_MEMORY) || !length)
		return;
	if (layer->flags & VS_FILE_INSTANT && !written && !data_on_tmpfs(layer, &first, &end))
		return;
	if (end > mapped)
		end = mapped;
	if (first < end)
		mark(layer, first, end, true);
}

void layer_forget_resident(struct layer *layer, uint64_t offset, uint64_t length)
{
	uint64_t mapped = atomic_load_explicit(&layer->mapping_length, memory_order_acquire) >> PAGE_BITS;
	uint64_t first = offset >> PAGE_BITS, end = (offset + length + (1u << PAGE_BITS) - 1) >> PAGE_BITS;

	if (!mapped || (layer->flags & VS_FILE_MEMORY) || !length)
		return;
	mark(layer, first, end < mapped ? end : mapped, false);
}

void layer_free(struct layer *layer)
{
	if (!layer)
		return;
	if (layer->mapping_length)
		munmap(layer->mapping, layer->mapping_length);
	free((void *)layer->resident);
	if (layer->fd >= 0)
		close(layer->fd);
	free(layer);
}
