"""Wire types of the routes that load and unload adapters."""

from __future__ import annotations

import msgspec

from galley.server.protocol.base import BodyReader, NoEffect

_3D = {"is_3d_lora_weight": NoEffect(bool, "the adapter's files tell")}


class LoadLoRAAdapterRequest(msgspec.Struct, kw_only=True):
    """An adapter to be loaded from a folder of the server."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadLoRAAdapterRequest(msgspec.Struct, kw_only=True):
    """An adapter that is to be offered no more; its number has no effect."""

    lora_name: str
    lora_int_id: int | None = None


class RegisterAdapterRequest(msgspec.Struct, kw_only=True):
    """As `LoadLoRAAdapterRequest`, by the names of SageMaker."""

    name: str
    src: str
    load_inplace: bool = False


load_reader = BodyReader(LoadLoRAAdapterRequest, _3D)
unload_reader = BodyReader(UnloadLoRAAdapterRequest, {})
register_reader = BodyReader(
    RegisterAdapterRequest,
    {
        **_3D,
        "preload": NoEffect(bool, "an adapter is loaded when it is registered"),
        "pin": NoEffect(bool, "an adapter stays until it is unregistered"),
    },
)
