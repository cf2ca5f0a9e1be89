//! Creation of a store.

use cellql_schemas as schemas;

use crate::error::{Result, StoreError};
use crate::genes::Catalogue;
use crate::store::Store;
use crate::version;

impl Store {
    /// Creates an empty store: its tables, with every gene of the nomenclature in `genes`.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if there is a store at `uri`; otherwise the location cannot be written.
    pub async fn init(uri: &str) -> Result<Self> {
        let store = Self::connect(uri).await?;
        if version::latest(&store.objects, &store.base).await?.is_some() {
            return Err(StoreError::Exists { uri: uri.to_owned() });
        }
        let mut transaction = store.begin("init").await?;
        // Checked again under the lock: another process may have created the store meanwhile.
        if transaction.store().version.version != 0 {
            return Err(StoreError::Exists { uri: uri.to_owned() });
        }
        transaction.replace(schemas::genes::TABLE, Catalogue::from_nomenclature().to_batch()?).await?;
        transaction.create(schemas::cells::TABLE, schemas::cells::schema()).await?;
        transaction.create(schemas::datasets::TABLE, schemas::datasets::schema()).await?;
        transaction.create(schemas::models::TABLE, schemas::models::schema()).await?;
        transaction.create(schemas::indexes::TABLE, schemas::indexes::schema()).await?;
        transaction.create(schemas::jobs::TABLE, schemas::jobs::schema()).await?;
        transaction.publish().await
    }
}
