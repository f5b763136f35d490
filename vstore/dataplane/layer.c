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

enum { WINDOW_PAGES = 512 };

void volume_retire(struct vs_volume *volume, void *memory, size_t length)
{
	struct retired *retired = malloc(sizeof(*retired));

	if (!retired)
		return; /* a leak is better than a reader on freed memory */
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
	/* mincore() tells only owners the truth about a file; others hear that everything is resident */
	if (!memory && status.st_uid != geteuid() && geteuid())
		return;
	uint64_t length = (uint64_t)status.st_size & ~(uint64_t)((1u << PAGE_BITS) - 1);
	if (memory)
		length = (uint64_t)status.st_size;
	if (length == old_length || !length)
		return;
	/* writing through a mapping is for files that live in memory: on a disk's file the first touch of a page may wait */
	bool writable = layer->flags & (VS_FILE_INSTANT | VS_FILE_MEMORY) && !(layer->flags & VS_FILE_READ_ONLY);
	uint8_t *mapping = mmap(NULL, length, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_NORESERVE,
				layer->fd, 0);
	uint64_t words = (length >> PAGE_BITS) / 64 + 1;
	_Atomic uint64_t *resident = calloc(words + words / WINDOW_PAGES + 1, sizeof(*resident));
	if (mapping == MAP_FAILED || !resident) {
		free((void *)resident);
		return;
	}
	madvise(mapping, length, MADV_DONTDUMP);
	atomic_store(&layer->mapping_length, 0); /* readers go to the file while the two pointers change */
	if (old_length) {
		volume_retire(volume, layer->mapping, old_length);
		volume_retire(volume, (void *)layer->resident, 0);
	}
	atomic_store(&layer->mapping, mapping);
	atomic_store(&layer->resident, resident);
	atomic_store(&layer->scanned, resident + words);
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

/*
 * A look through the mapping of a tmpfs file would allocate the holes it meets, so there only pages that are known to be
 * data may be marked. mincore() knows; each window of pages is asked about once, since our own writes mark what they
 * allocate. (lseek(SEEK_HOLE) knows too, but walks the whole file to say so.)
 */
static void scan_window(struct layer *layer, uint64_t page, uint64_t mapped)
{
	unsigned char resident[WINDOW_PAGES];
	uint64_t window = page / WINDOW_PAGES, first = window * WINDOW_PAGES, bit = 1ull << (window % 64);
	uint64_t count = mapped - first < WINDOW_PAGES ? mapped - first : WINDOW_PAGES;
	uint8_t *mapping = atomic_load_explicit(&layer->mapping, memory_order_relaxed);

	if (atomic_fetch_or(&layer->scanned[window / 64], bit) & bit)
		return;
	if (mincore(mapping + (first << PAGE_BITS), count << PAGE_BITS, resident))
		return;
	for (uint64_t i = 0; i < count; i++)
		if (resident[i] & 1)
			mark(layer, first + i, first + i + 1, true);
}

void layer_note_resident(struct layer *layer, uint64_t offset, uint64_t length, bool written)
{
	uint64_t mapped = atomic_load_explicit(&layer->mapping_length, memory_order_acquire) >> PAGE_BITS;
	uint64_t first = offset >> PAGE_BITS, end = (offset + length + (1u << PAGE_BITS) - 1) >> PAGE_BITS;

	if (!mapped || (layer->flags & VS_FILE_MEMORY) || !length)
		return;
	if (end > mapped)
		end = mapped;
	if (!(layer->flags & VS_FILE_INSTANT) || written) {
		if (first < end)
			mark(layer, first, end, true);
		return;
	}
	for (uint64_t page = first; page < end; page += WINDOW_PAGES - page % WINDOW_PAGES)
		scan_window(layer, page, mapped);
}

void layer_forget_resident(struct layer *layer, uint64_t offset, uint64_t length)
{
	uint64_t mapped = atomic_load_explicit(&layer->mapping_length, memory_order_acquire) >> PAGE_BITS;
	uint64_t first = offset >> PAGE_BITS, end = (offset + length + (1u << PAGE_BITS) - 1) >> PAGE_BITS;

	if (!mapped || (layer->flags & VS_FILE_MEMORY) || !length)
		return;
	mark(layer, first, end < mapped ? end : mapped, false);
}

/*
 * What to answer to a flush that ended with `result`. The kernel tells once that it could not write back what a file had
 * in memory; then the pages count as clean, and the next flush succeeds. So a failure is kept for as long as the layer is
 * open: the writes before it are gone, and no flush after it may be called good. With O_DIRECT nothing waits in memory.
 */
int layer_synced(struct layer *layer, int result)
{
	if (UNLIKELY(result) && !(layer->flags & VS_FILE_DIRECT))
		atomic_store(&layer->lost, result);
	int lost = atomic_load_explicit(&layer->lost, memory_order_relaxed);
	return result ? result : lost;
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
