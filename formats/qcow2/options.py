"""The options of a new qcow2 image under the names of `qemu-img create -o`."""

from formats.options import Option, one_of, size, switch, whole, word

OPTIONS = (
    Option(
        "compat",
        "version of the format: 1.1 (default), or 0.10 for very old readers",
        one_of({"0.10": 2, "1.1": 3, "v2": 2, "v3": 3}),
    ),
    Option("cluster_size", "bytes allocated at once, a power of two from 512 to 2M", size),
    Option("extended_l2", "32 sub-clusters in each cluster: on or off", switch),
    Option("refcount_bits", "bits of a reference count: 1, 2, 4 ... 64", whole),
    Option("lazy_refcounts", "put off reference counts until the image is closed: on or off", switch),
    Option("compression_type", "of compressed clusters: zlib or zstd", one_of({"zlib": "zlib", "zstd": "zstd"})),
    Option("encrypt.format", "luks: encrypted; the secret is given beside the options", one_of({"luks": "luks"})),
    Option("backing_file", "the parent, whose content shows through where the image has none", word),
    Option("backing_fmt", "format of the parent", word),
    Option("data_file", "a new file, named relative to the image, that holds the data; the image holds the map", word),
    Option("data_file_raw", "the data file is a valid raw image at any time: on or off", switch),
)
